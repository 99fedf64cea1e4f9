"""Multi-scenario and multi-task models: one paper, one file."""
