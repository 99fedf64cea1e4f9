"""A table of an inspection."""

from rankloom.config import Config


class InspectionTable(Config):
    """A table of texts."""

    title: str
    """Heading."""
    columns: tuple[str, ...]
    """Headings of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells; leading ones are names, the others numbers."""
    names: int = 1
    """How many of the columns are names."""
    notes: tuple[str, ...] = ()
    """What a reader must know about it."""
