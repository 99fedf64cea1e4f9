"""Which rows of a log stay at all: a filter, a sample of a column's values, a k-core."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from rankloom.data.cells import to_text
from rankloom.data.hashing import value_draws
from rankloom.data.keys import Codes, KeyColumn


def filtered_rows(
    keys: Mapping[str, KeyColumn], columns: Mapping[str, Collection[str | int]]
) -> NDArray[np.bool_]:
    """Rows that have one of the wanted values in every column.

    Args:
        keys: the columns.
        columns: column -> values that stay; `1` and `"1"` are the same.

    Raises:
        ValueError: no row is left.
    """
    keep = np.ones(len(next(iter(keys.values())).codes), dtype=np.bool_)
    for column, values in columns.items():
        wanted = to_text(keys[column].values).is_in([str(value) for value in values]).to_numpy()
        # The last place answers for missing values, whose code is -1.
        keep &= np.append(wanted, False)[keys[column].codes]
    if not keep.any():
        named = "; ".join(
            f"{column} {', '.join(map(str, values))}" for column, values in columns.items()
        )
        raise ValueError(f"the filter ({named}) leaves no rows; correct its values")
    return keep


def sampled_rows(key: KeyColumn, share: float, seed: int) -> NDArray[np.bool_]:
    """Rows whose value is in the sample: its hash, mixed with the seed, falls below the share.

    Args:
        key: the column.
        share: share of the values, about.
        seed: another seed keeps other values.

    Raises:
        ValueError: no value is kept.
    """
    kept = value_draws(key.values, seed) < share
    if not kept.any():
        raise ValueError(f"the sample (a share of {share} of {len(kept):,} values) is empty")
    # The last place answers for missing values, whose code is -1.
    rows: NDArray[np.bool_] = np.append(kept, False)[key.codes]
    return rows


def core_rows(
    codes: Mapping[str, Codes], least: Mapping[str, int], keep: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Rows that stay when every value of every column must have that many rows.

    Dropping rows of one column takes rows from the others, so it repeats until nothing changes; the
    result does not depend on the order of the columns. A row without a value is dropped.

    Args:
        codes: column -> [rows] codes, -1 for missing.
        least: column -> least number of rows of each of its values.
        keep: [rows]; rows to begin with. None: all.

    Raises:
        ValueError: no row is left.
    """
    rows = len(next(iter(codes.values())))
    keep = np.ones(rows, dtype=np.bool_) if keep is None else keep.copy()
    for column in least:
        keep &= codes[column] >= 0
    kept = -1
    while kept != (kept := int(keep.sum())):
        for column, count in least.items():
            seen = np.bincount(codes[column][keep], minlength=int(codes[column].max(initial=0)) + 1)
            keep &= seen[codes[column]] >= count
    if not kept:
        wanted = ", ".join(f"{column} {count}" for column, count in least.items())
        raise ValueError(f"the core filter ({wanted}) leaves no rows; lower its counts")
    return keep
