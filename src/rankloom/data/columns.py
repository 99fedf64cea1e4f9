"""Encoded rows as numpy arrays: what `prepare` writes, and what a request is turned into.

Only what is stored in the row stands here; columns that belong to an entity are gathered later.
Column orders are those of the fitted `Schema`, entity columns left out.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class SequenceColumns:
    """One sequence group of some rows."""

    offsets: NDArray[np.int64]
    """[rows + 1], starts at 0."""
    ids: NDArray[np.int32]
    """[positions, stored id columns]."""
    numeric: NDArray[np.float32] | None = None
    """[positions, stored numeric members]; None when there are none."""
    time: NDArray[np.int64] | None = None
    """[positions]; None when the group carries no time."""
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Member name -> [positions, width]."""


@dataclass(frozen=True)
class Columns:
    """Encoded rows."""

    categorical: NDArray[np.int32]
    """[rows, stored categorical fields]; width 0 when there are none."""
    numeric: NDArray[np.float32]
    """[rows, stored numeric fields]; width 0 when there are none."""
    sequences: dict[str, SequenceColumns] = field(default_factory=dict)
    """Group name -> its events."""
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Field name -> [rows, width]."""
    labels: NDArray[np.float32] | None = None
    """[rows, tasks]; NaN where missing. None when the rows have no labels (entities, requests)."""
    weight: NDArray[np.float32] | None = None
    """[rows]."""
    scenario: NDArray[np.int32] | None = None
    """[rows]."""
    group: NDArray[np.int64] | None = None
    """[rows]."""
    time: NDArray[np.int64] | None = None
    """[rows]."""
    texts: dict[str, pa.Array] = field(default_factory=dict)
    """Column name -> [rows] strings."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.categorical.shape[0]
