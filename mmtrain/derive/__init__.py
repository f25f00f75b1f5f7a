"""Other models out of one, and what they are worth: extracted, cut, compared, as ONNX."""
