"""What a model is worth: metrics, their trivial baselines, results and samples."""
