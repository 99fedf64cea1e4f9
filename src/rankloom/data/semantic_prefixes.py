"""Semantic ids as features: the prefixes of an item's codes, as numbers.

An item with the codes (c1, c2, c3) has the prefixes (c1), (c1, c2) and (c1, c2, c3). Items that
share a prefix share its number, and so its row of the embedding table. `prepare` reads the ids of a
catalogue once and keeps the numbers in the data set folder, which needs neither the ids' folder nor
the catalogue afterwards.

Source: Singh et al., RecSys 2024, arXiv:2306.08121 (semantic ids in place of hashed item ids in a
ranking model); Zheng et al., 2025, arXiv:2504.02137 (one embedding for every prefix, summed, which
they call prefix-ngram). From memory: neither paper was at hand when this was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rankloom.data.hashing import bucket_ids
from rankloom.data.sequence_store import SequenceData
from rankloom.data.table_schema import SemanticId, TableSchema
from rankloom.data.vocabulary import NOT_A_NUMBER, Vocabulary
from rankloom.retrieval.semantic_ids import SemanticIds

FOLDER = "semantic_ids"
"""Folder inside a data set folder."""
_ITEM = "item"


@dataclass(frozen=True)
class ItemPrefixes:
    """The prefixes of every item of a catalogue."""

    items: pl.Series
    """[items] String: the items' ids, all different."""
    numbers: NDArray[np.int64]
    """[items, levels]: number of the prefix of 1, 2 ... codes, -1 after an id's end."""

    @property
    def num_levels(self) -> int:
        """Prefixes of the longest id."""
        return self.numbers.shape[1]

    def places(self, values: pl.Series) -> NDArray[np.int32]:
        """Where items stand, for `prefix`: any shape of [rows].

        Args:
            values: item ids as text; nulls are allowed.
        """
        return self._vocabulary.lookup(values)

    def prefix(self, places: NDArray[np.int32], length: int) -> pl.Series:
        """Int64 numbers of the prefix of `length` codes.

        An id that is shorter gives a null, and so does a missing item. An item that the catalogue
        has not has an unknown first prefix (`NOT_A_NUMBER`) and no further one.
        """
        column = self._columns[length - 1][places]
        return pl.Series(column).set(pl.Series(column == -1), None)

    def save(self, path: Path) -> None:
        """Write as Parquet: item, then one column for each level."""
        columns = {
            f"prefix_{level + 1}": self.numbers[:, level] for level in range(self.num_levels)
        }
        items = self.items.to_arrow(compat_level=pl.CompatLevel.oldest())
        table = pa.table({_ITEM: items, **columns})
        # One row group and fixed settings: the same prefixes give the same bytes.
        pq.write_table(table, path, compression="zstd", row_group_size=max(len(self.items), 1))

    @classmethod
    def load(cls, path: Path) -> "ItemPrefixes":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}; prepare the data set again")
        try:
            frame = pl.DataFrame(pl.from_arrow(pq.read_table(path)))
            items, numbers = frame[_ITEM].cast(pl.String), frame.drop(_ITEM).to_numpy()
        except (pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{path} is damaged: {error}; prepare the data set again") from None
        return cls(items, numbers.astype(np.int64))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.items, np.ones(len(self.items), np.int64))

    @cached_property
    def _columns(self) -> list[NDArray[np.int64]]:
        """By level: [2 + items], those of a missing and of an unknown item first."""
        unknown = np.full(self.num_levels, -1, np.int64)
        unknown[:1] = NOT_A_NUMBER
        rows = np.concatenate([np.full((1, self.num_levels), -1), unknown[None], self.numbers])
        return [np.ascontiguousarray(rows[:, level]) for level in range(self.num_levels)]


def number_prefixes(ids: SemanticIds, items: list[str], feature: SemanticId) -> ItemPrefixes:
    """Number the prefixes of a catalogue's ids, those of each level after those of the level above.

    Merges of the ids are left out: a prefix is one of codes.

    Args:
        ids: the ids.
        items: [items] the items' own ids.
        feature: says how many levels are used, and whether prefixes are hashed into buckets.
    """
    levels = len(ids.level_sizes)
    used = levels if feature.max_levels is None else min(levels, feature.max_levels)
    numbers = np.full((ids.num_items, used), -1, np.int64)
    place = np.zeros(ids.num_items, np.int64)  # of each item's prefix among those of its level
    first = 0
    for level in range(used):
        there = np.flatnonzero(ids.codes[:, level] >= 0)
        # A prefix is one code behind a prefix of the level above.
        key = place[there] * ids.level_sizes[level] + ids.codes[there, level]
        distinct, own = np.unique(key, return_inverse=True)
        place[there] = own.reshape(-1)
        numbers[there, level] = first + place[there]
        first += len(distinct)
    if feature.hash_buckets is not None:
        there_all = numbers >= 0
        hashed = bucket_ids(pl.Series(numbers[there_all]), feature.hash_buckets)
        numbers[there_all] = hashed
    return ItemPrefixes(pl.Series(items, dtype=pl.String), numbers)


def open_prefixes(schema: TableSchema, root: Path) -> dict[str, ItemPrefixes]:
    """The prefixes of every `semantic_id` feature of a declaration.

    Args:
        schema: the declaration.
        root: folder that relative paths start from.

    Raises:
        FileNotFoundError: a folder does not exist or holds something else.
        ValueError: the ids are of another catalogue, or a folder is damaged.
    """
    return {
        name: _open(name, feature, root)
        for name, feature in schema.features.items()
        if isinstance(feature, SemanticId)
    }


def save_prefixes(folder: Path, prefixes: Mapping[str, ItemPrefixes]) -> None:
    """Write the prefixes of all features into a data set folder."""
    for name, own in prefixes.items():
        path = _path(folder, name)
        path.parent.mkdir(exist_ok=True)
        own.save(path)


def load_prefixes(folder: Path, schema: TableSchema) -> dict[str, ItemPrefixes]:
    """Read what `save_prefixes` wrote; errors as `ItemPrefixes.load`."""
    return {
        name: ItemPrefixes.load(_path(folder, name))
        for name, feature in schema.features.items()
        if isinstance(feature, SemanticId)
    }


def _open(name: str, feature: SemanticId, root: Path) -> ItemPrefixes:
    try:
        ids = SemanticIds.load(root / feature.ids)
        catalogue = SequenceData.open(root / feature.items).catalogue
    except FileNotFoundError as error:
        raise FileNotFoundError(f"feature {name}: {error}") from None
    if ids.items_hash != catalogue.items_hash:
        raise ValueError(
            f"feature {name}: the semantic ids in {feature.ids} are of another catalogue than the "
            f"items in {feature.items} ({ids.num_items:,} and {catalogue.num_items:,} items); give "
            "the sequence data set that they were made from, or tokenize again"
        )
    return number_prefixes(ids, catalogue.ids, feature)


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{quote(name, safe=' ')}.parquet"
