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


def without_run(table: InspectionTable) -> InspectionTable:
    """The table without its column of runs, if other names are left; for when there is one run."""
    names = table.columns[: table.names]
    if "run" not in names or len(names) < 2:
        return table
    place = names.index("run")
    return table.model_copy(
        update={
            "columns": (*table.columns[:place], *table.columns[place + 1 :]),
            "rows": tuple((*row[:place], *row[place + 1 :]) for row in table.rows),
            "names": table.names - 1,
        }
    )
