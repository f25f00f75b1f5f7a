"""Shared fixtures. Integration tests share one local Ray cluster (`tests/integration/conftest.py`)."""
