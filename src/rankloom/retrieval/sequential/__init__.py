"""Sequential models that score every item."""
