"""Metrics, significance, cost: pure functions."""
