"""Ready-made sweeps: what is searched, as data."""
