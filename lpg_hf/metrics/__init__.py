"""Metrics: accumulators of constant size with an `evaluate` face."""
