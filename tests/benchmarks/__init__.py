"""Benchmarks: each script prints one JSON line for each comparison; `make bench` runs them all."""
