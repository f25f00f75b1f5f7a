"""Answers of a trained model: one by one, or of data of any size on Ray Data."""
