"""k-core filtering on key columns."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rankloom.data.keys import Codes


def core_rows(codes: Mapping[str, Codes], least: Mapping[str, int]) -> NDArray[np.bool_]:
    """Rows that stay when every value of every column must have that many rows.

    Dropping rows of one column takes rows from the others, so it repeats until nothing changes; the
    result does not depend on the order of the columns. A row without a value is dropped.

    Args:
        codes: column -> [rows] codes, -1 for missing.
        least: column -> least number of rows of each of its values.

    Raises:
        ValueError: no row is left.
    """
    rows = len(next(iter(codes.values())))
    keep = np.ones(rows, dtype=np.bool_)
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
