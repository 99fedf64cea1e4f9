"""Models that write the semantic id of the next item."""
