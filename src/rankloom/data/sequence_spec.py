"""The declared side of a sequence data set: which columns hold users, items, times and texts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rankloom.config import Config, load_config
from rankloom.data.table_schema import TableInput

SequenceFormat = Literal["auto", "csv", "tsv", "parquet", "jsonl"]


class EventRules(Config):
    """Which events of a user become the user's sequence."""

    repeats: Literal["keep", "first"] = "keep"
    """What becomes of an item that a user has several times: all stay, or the first one alone."""
    unknown_items: Literal["error", "drop"] = "error"
    """What becomes of an item that the table of items lacks."""
    min_count: int | None = Field(None, gt=1)
    """k-core: repeat until every user has so many events and every item is in so many; the others
    leave the data set, the items the catalogue too."""


class InteractionsInput(TableInput, EventRules):
    """A log with one event a row."""

    format: SequenceFormat = "auto"
    """File format; `auto` goes by the ending (.gz and .zst are looked through)."""
    user: str
    """Column of the user's id."""
    item: str
    """Column of the item's id."""
    time: str | None = None
    """Column that orders a user's events: numbers, dates, or ISO text, by whole seconds. Events of
    one time, and all of a user's where no column is named, keep the order of the files."""


class SequencesInput(TableInput, EventRules):
    """A table with one user a row, and the user's items in a list."""

    format: SequenceFormat = "auto"
    """File format; `auto` goes by the ending (.gz and .zst are looked through)."""
    user: str
    """Column of the user's id."""
    items: str
    """Column of the item ids, oldest first: lists, or text with spaces between the ids."""


class ItemsInput(TableInput):
    """The table of items; its order is that of the item numbers."""

    format: SequenceFormat = "auto"
    """File format; `auto` goes by the ending (.gz and .zst are looked through)."""
    id: str
    """Column of the item's id."""
    title: str | None = None
    """Column of what a person is shown."""
    text: tuple[str, ...] = ()
    """Columns of the item's text, in order. Each is made a sentence; a list is joined by spaces."""
    attributes: tuple[str, ...] = ()
    """Columns of side fields with one value an item; of a list, the first value counts."""
    vectors: str | None = None
    """Column of given vectors: lists of numbers, all of one width."""
    only_seen: bool = False
    """Whether items that no sequence has are left out of the catalogue."""

    @model_validator(mode="after")
    def _check_double(self) -> Self:
        for key in ("text", "attributes"):
            names = getattr(self, key)
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise ValueError(f"{key} names {', '.join(double)} more than once")
        return self


class SequenceSpec(Config):
    """Declaration of a sequence data set."""

    name: str
    """Name of the data set."""
    interactions: InteractionsInput | None = None
    """A log of events; this or `sequences`."""
    sequences: SequencesInput | None = None
    """A table of ready lists; this or `interactions`."""
    items: ItemsInput | None = None
    """The items; without it, those of the sequences, in order of appearance and without text."""

    @model_validator(mode="after")
    def _check_one_log(self) -> Self:
        if (self.interactions is None) == (self.sequences is None):
            raise ValueError("give one of the tables [interactions] and [sequences], not both")
        return self


def load_sequence_spec(path: str | Path) -> SequenceSpec:
    """Read a declaration from a TOML file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no TOML, or a key is wrong; the message names it.
    """
    return load_config(SequenceSpec, path)
