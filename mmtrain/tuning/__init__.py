"""Sweeps: their description, trials, records, reports; `mmtrain.tune` runs them on Ray Tune."""
