"""Public data sets: one file per source."""
