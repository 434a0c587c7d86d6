"""Masks against ground truth, and generators side by side."""
