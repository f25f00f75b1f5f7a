"""Sweeps: their description, trials, records, reports; `tune.py` runs them on Ray Tune."""
