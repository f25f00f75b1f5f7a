"""Model families: a body and its config each; `model.py` joins stems, body and heads."""
