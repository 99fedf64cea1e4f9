"""Vocabularies: which ids stand for which values, and the counting that fits them.

Id 0 is padding (a missing value), 1 is out-of-vocabulary, kept values follow, ordered by their
count in the training split (largest first), equal counts by value. The order depends on the rows
alone, not on chunks or threads. Matching is exact: values are compared, never their hashes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rankloom.schema import NUM_RESERVED, OUT_OF_VOCABULARY, PADDING

NOT_A_NUMBER = -(2**63)
"""Stands for a text that is no integer where integers are looked up; never in a vocabulary."""
_DENSE_SPAN = 2**22
_SEARCH_COST = 64
"""Searching one text costs about as much as hashed lookup spends on this many known texts."""


@dataclass(frozen=True)
class Vocabulary:
    """The kept values of one table: value i has id i + 2."""

    values: pl.Series
    """Int64 or String, without nulls or repeats."""
    counts: NDArray[np.int64]
    """[values]: occurrences in the training split."""

    @property
    def rows(self) -> int:
        """Rows of the table, the two reserved ones included."""
        return len(self.values) + NUM_RESERVED

    @property
    def is_text(self) -> bool:
        """Whether values are text (else they are integers)."""
        return self.values.dtype == pl.String

    def lookup(self, values: pl.Series) -> NDArray[np.int32]:
        """Ids of values: 0 for a null, 1 for a value that is not kept.

        Args:
            values: of the vocabulary's own type.

        Returns:
            int32 [rows].
        """
        if len(self.values) == 0:
            ids = np.full(len(values), OUT_OF_VOCABULARY, np.int32)
        elif self.is_text:
            ids = self._lookup_texts(values)
        else:
            ids = self._lookup_integers(values.fill_null(NOT_A_NUMBER).to_numpy())
        if values.null_count():
            ids[values.is_null().to_numpy()] = PADDING
        return ids

    def save(self, path: Path) -> None:
        """Write as Parquet: index (int32 id), value, count."""
        table = pa.table(
            {
                "index": np.arange(NUM_RESERVED, self.rows, dtype=np.int32),
                "value": self.values.to_arrow(compat_level=pl.CompatLevel.oldest()),
                "count": self.counts,
            }
        )
        # One row group and fixed settings: the same values give the same bytes.
        pq.write_table(table, path, compression="zstd", row_group_size=max(len(self.values), 1))

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is no vocabulary.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no such vocabulary: {path}; prepare the data set again")
        try:
            frame = pl.DataFrame(pl.from_arrow(pq.read_table(path)))
            values, counts = frame["value"], frame["count"].to_numpy()
        except (pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{path} is damaged: {error}; prepare the data set again") from None
        if values.dtype not in (pl.Int64, pl.String):
            raise ValueError(f"{path}: values must be integers or text; got {values.dtype}")
        return cls(values, counts)

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.values)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.values.to_numpy(), kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return self.values.to_numpy()[self._order]

    @cached_property
    def _dense(self) -> NDArray[np.int32] | None:
        """Ids by value - least value, when values lie close together."""
        span = int(self._sorted[-1]) - int(self._sorted[0]) + 1
        if span > max(4096, 8 * len(self.values)):
            return None
        ids = np.full(span, OUT_OF_VOCABULARY, np.int32)
        ids[self._sorted - self._sorted[0]] = self._order + NUM_RESERVED
        return ids

    @cached_property
    def _sorted_texts(self) -> tuple[pl.Series, NDArray[np.uint32]]:
        order = self.values.arg_sort()
        return self.values.gather(order), order.to_numpy()

    def _lookup_texts(self, values: pl.Series) -> NDArray[np.int32]:
        if _SEARCH_COST * len(values) > len(self.values):
            # By hash: every call also spends time on each known text, so few rows do not go here.
            places = values.cast(self._enum, strict=False).to_physical().cast(pl.Int64)
            return places.fill_null(-1).to_numpy().astype(np.int32) + np.int32(NUM_RESERVED)
        known, order = self._sorted_texts
        after = known.search_sorted(values.fill_null("")).to_numpy()
        nearest = np.minimum(after, len(known) - 1)
        found = (known.gather(nearest) == values).fill_null(False).to_numpy()
        ids = np.where(found, order[nearest] + np.uint32(NUM_RESERVED), OUT_OF_VOCABULARY)
        return ids.astype(np.int32)

    def _lookup_integers(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        least, largest = self._sorted[0], self._sorted[-1]
        inside = (values >= least) & (values <= largest)
        if self._dense is not None:
            places = np.where(inside, values, least) - least
            return np.where(inside, self._dense[places], np.int32(OUT_OF_VOCABULARY))
        places = np.searchsorted(self._sorted, values)
        places[~inside] = 0
        found = inside & (self._sorted[places] == values)
        ids = np.where(found, self._order[places] + NUM_RESERVED, OUT_OF_VOCABULARY)
        return ids.astype(np.int32)


def select_values(
    values: pl.Series, counts: NDArray[np.int64], min_count: int, max_values: int | None
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """Choose and order the kept values.

    Args:
        values: distinct values.
        counts: their occurrences in the training split.
        min_count: least count of a kept value (at least 1).
        max_values: most values kept; None: all.

    Returns:
        The vocabulary, and the place in `values` of each of its values.
    """
    frame = pl.DataFrame({"value": values, "count": counts}).with_row_index("place")
    frame = frame.filter(pl.col("count") >= max(min_count, 1))
    frame = frame.sort(["count", "value"], descending=[True, False])
    if max_values is not None:
        frame = frame.head(max_values)
    chosen = Vocabulary(frame["value"].rechunk(), frame["count"].to_numpy().copy())
    return chosen, frame["place"].to_numpy().astype(np.int64)


class TextCounter:
    """Gives every distinct text a provisional code as it arrives, and counts codes.

    Codes are those of a polars `Categories` mapping: every text is stored once, and columns are
    coded in parallel. Which text gets which code depends on threads; the fitted ids do not.
    """

    def __init__(self) -> None:
        self._categories = pl.Categories.random()
        self._type = pl.Categorical(self._categories)
        self._keep_alive = pl.Series([], dtype=self._type)  # the mapping lives as long as its users
        self._counts = np.zeros(1024, np.int64)

    def codes(self, column: pl.Expr) -> pl.Expr:
        """UInt32 codes of a text column: 0 for a null, otherwise 1 + the place of the text."""
        return (column.cast(self._type).to_physical() + 1).fill_null(0)

    def count(self, codes: NDArray[np.uint32]) -> None:
        """Count the codes of training rows."""
        if len(codes) == 0:
            return
        needed = int(codes.max()) + 1
        if needed > len(self._counts):
            grown = np.zeros(max(needed, 2 * len(self._counts)), np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        np.add.at(self._counts, codes, 1)

    def _distinct(self) -> int:
        """Number of texts seen: the first code that stands for none (there is no len)."""
        low, high = 0, 2**32 - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if middle in self._categories else (low, middle)
        return low

    def counted(self, codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which codes were counted."""
        inside = codes < len(self._counts)
        return inside & (codes > 0) & (self._counts[np.where(inside, codes, 0)] > 0)

    def fit(self, min_count: int, max_values: int | None) -> tuple[Vocabulary, NDArray[np.int32]]:
        """The vocabulary, and the id of every code."""
        codes = pl.Series("value", np.arange(self._distinct(), dtype=np.uint32))
        values = codes.cat.to(self._type).cast(pl.String)
        counts = np.zeros(len(values), np.int64)
        known = self._counts[1 : len(values) + 1]
        counts[: len(known)] = known
        chosen, places = select_values(values, counts, min_count, max_values)
        ids = np.full(len(values) + 1, OUT_OF_VOCABULARY, np.int32)
        ids[0] = PADDING
        ids[places + 1] = np.arange(NUM_RESERVED, chosen.rows, dtype=np.int32)
        return chosen, ids


class IntegerCounter:
    """Counts integers: in an array while they lie close together, else as sorted distinct values.

    Memory follows the number of distinct values; sorted runs are merged when they have grown to the
    size of what is already merged, so that each value is moved a logarithmic number of times.
    """

    def __init__(self) -> None:
        self._least = 0
        self._dense: NDArray[np.int64] | None = np.zeros(0, np.int64)
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def count(self, values: NDArray[np.int64]) -> None:
        """Count values; `NOT_A_NUMBER` is left out."""
        if len(values) == 0:
            return None
        if int(values.min()) == NOT_A_NUMBER:
            return self.count(values[values != NOT_A_NUMBER])
        if self._dense is not None and self._count_dense(self._dense, values):
            return None
        self._add_run(*np.unique(values, return_counts=True))
        return None

    def fit(self, min_count: int, max_values: int | None) -> Vocabulary:
        """The vocabulary."""
        self._leave_dense()
        self._merge()
        values, counts = self._runs[0] if self._runs else (np.empty(0, np.int64),) * 2
        return select_values(pl.Series("value", values), counts, min_count, max_values)[0]

    def _count_dense(self, dense: NDArray[np.int64], values: NDArray[np.int64]) -> bool:
        least, largest = int(values.min()), int(values.max())
        if len(dense):
            least = min(least, self._least)
            largest = max(largest, self._least + len(dense) - 1)
        if largest - least + 1 > _DENSE_SPAN:
            self._leave_dense()
            return False
        if largest - least + 1 > len(dense):
            grown = np.zeros(largest - least + 1, np.int64)
            start = self._least - least if len(dense) else 0
            grown[start : start + len(dense)] = dense
            self._dense = dense = grown
        self._least = least
        np.add.at(dense, values - least, 1)
        return True

    def _leave_dense(self) -> None:
        if self._dense is not None:
            present = np.flatnonzero(self._dense)
            if len(present):
                self._runs.append((present + self._least, self._dense[present]))
        self._dense = None

    def _add_run(self, values: NDArray[np.int64], counts: NDArray[Any]) -> None:
        self._runs.append((values, counts.astype(np.int64)))
        recent = sum(len(run[0]) for run in self._runs[1:])
        if recent > max(2**20, len(self._runs[0][0])):
            self._merge()

    def _merge(self) -> None:
        if len(self._runs) < 2:
            return
        values = np.concatenate([run[0] for run in self._runs])
        counts = np.concatenate([run[1] for run in self._runs])
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        self._runs = [(values[starts], np.add.reduceat(counts, starts))]
