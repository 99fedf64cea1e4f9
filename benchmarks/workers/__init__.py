"""One module per library; each runs in its own process."""
