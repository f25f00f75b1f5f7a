"""Registered models as a person asks for them, and as MLflow runs them."""
