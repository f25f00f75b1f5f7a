"""Cutting a trained model to a subset: slices, recalibration, budgets, operations counted."""
