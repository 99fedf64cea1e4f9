"""From raw interaction logs to served recommendations with the models that scale."""

__version__ = "0.1.0"
