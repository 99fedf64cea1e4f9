"""Key columns of a whole log in memory: four bytes per row, whatever the values are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Times = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class KeyColumn:
    """A column as dense codes."""

    codes: Codes
    """[rows]; index into `values`, -1 where the value is missing."""
    values: pl.Series
    """The distinct values, in the column's own type."""
    files: tuple[tuple[str, int], ...] = ()
    """Name of each file and index of its first row, for messages."""

    def place(self, row: int) -> str:
        """`file: row 10,234` for the row with this index."""
        for name, first in reversed(self.files):
            if row >= first:
                return f"{name}: row {row - first + 1:,}"
        return f"row {row + 1:,} of the table"

    def take(self, codes: Codes) -> pl.Series:
        """Values of these codes, missing for -1."""
        index = pl.Series(codes, dtype=pl.Int32)
        return self.values.gather(index.set(index < 0, None))


class KeyCollector:
    """Gathers one column chunk by chunk."""

    def __init__(self, dtype: pl.DataType) -> None:
        self.dtype = dtype
        self._known: dict[str, int] = {}
        self._codes: list[Codes] = []
        self._numbers: list[Times] = []
        self._missing: list[NDArray[np.bool_]] = []

    def add(self, chunk: pl.Series) -> None:
        """Append the rows of a chunk.

        Raises:
            ValueError: the column holds lists.
        """
        if self.dtype.is_nested():
            raise ValueError(f"column {chunk.name} holds lists, which cannot be a key")
        if self.dtype == pl.String:
            self._codes.append(self._encode(chunk))
        else:
            self._missing.append(chunk.is_null().to_numpy())
            self._numbers.append(chunk.fill_null(0).to_numpy())

    def finish(self, files: Sequence[tuple[str, int]] = ()) -> KeyColumn:
        """The whole column; the codes of numbers follow their order, those of text do not.

        Args:
            files: name of each file and index of its first row, for messages.
        """
        if self.dtype == pl.String:
            codes = np.concatenate([np.empty(0, np.int32), *self._codes])
            texts = pl.Series(list(self._known), dtype=pl.String)
            return KeyColumn(codes, texts, tuple(files))
        none = np.empty(0, np.float64 if self.dtype == pl.Float64 else np.int64)
        known = ~np.concatenate([np.empty(0, np.bool_), *self._missing])
        numbers = np.concatenate([none, *self._numbers])[known]
        distinct, inverse = np.unique(numbers, return_inverse=True)
        codes = np.full(len(known), -1, dtype=np.int32)
        codes[known] = inverse
        return KeyColumn(codes, pl.Series(distinct, dtype=self.dtype), tuple(files))

    def _encode(self, chunk: pl.Series) -> Codes:
        # In order of appearance, so that codes do not depend on the size of the chunks.
        texts = chunk.unique(maintain_order=True).drop_nulls()
        codes = [self._known.setdefault(text, len(self._known)) for text in texts]
        new = pl.Series(codes, dtype=pl.Int32)
        return chunk.replace_strict(texts, new, default=-1, return_dtype=pl.Int32).to_numpy()


def as_times(key: KeyColumn, column: str) -> Times:
    """The numbers of a time column, per row.

    Raises:
        ValueError: the column is text, or a row has no time; the message gives the row.
    """
    if not key.values.dtype.is_numeric():
        unread = key.values.cast(pl.Float64, strict=False).is_null().to_numpy()
        wrong = np.flatnonzero(np.append(unread, False)[key.codes])
        row = int(wrong[0]) if wrong.size else 0
        got = key.take(key.codes[row : row + 1])[0]
        raise ValueError(
            f"{key.place(row)}: column {column} orders rows and must hold numbers; got {got!r}; "
            "correct it, or make a timestamp of it with [[derive]]"
        )
    require_values(key, column)
    return key.values.to_numpy()[key.codes]


def require_values(key: KeyColumn, column: str) -> None:
    """Raise ValueError for the first row where the column has no value."""
    missing = np.flatnonzero(key.codes < 0)
    if missing.size:
        raise ValueError(f"{key.place(int(missing[0]))}: column {column} has no value")
