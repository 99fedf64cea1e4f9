"""Leaderboards and pages, generated from run records only."""
