"""Sweeps: each public function of a module here takes a `Recipe` and returns a `SweepConfig`."""
