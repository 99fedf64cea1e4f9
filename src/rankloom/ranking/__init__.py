"""Ranking models: one paper, one file."""
