"""Seeded negative sampling for logs that hold only positives."""

import numpy as np
from numpy.typing import NDArray

from rankloom.data.keys import Codes

MAX_ROUNDS = 16
"""Rounds of rejection; users whom they leave over know nearly every item and are drawn exactly."""

SLICE_ROWS = 2**17
"""Rows drawn for at a time, to bound memory. The draw depends on it."""


def draw_negatives(
    users: Codes, items: Codes, per_positive: int, seed: int, within: Codes | None = None
) -> Codes:
    """Draw items for every row that are nowhere in the log of the row's user.

    The draw is uniform over the items of the log that the user has not touched, with replacement:
    two negatives of one row may be the same item. It depends on the rows and the seed only.

    Args:
        users: [rows] codes, none missing.
        items: [rows] codes, none missing.
        per_positive: items per row.
        seed: seed of the draw.
        within: [rows] codes of few values, none missing; the rows of each are a log of their own.

    Returns:
        [rows, per_positive] item codes; -1 for users who have touched every item.
    """
    generator = np.random.default_rng(seed)
    if within is None:
        return _draw_from_one_log(users, items, per_positive, generator)
    found = np.empty((len(users), per_positive), dtype=np.int32)
    for value in np.unique(within):
        rows = np.flatnonzero(within == value)
        found[rows] = _draw_from_one_log(users[rows], items[rows], per_positive, generator)
    return found


def _draw_from_one_log(
    users: Codes, items: Codes, per_positive: int, generator: np.random.Generator
) -> Codes:
    catalogue = np.unique(items)
    num_items = len(catalogue)
    own = users.astype(np.int64) * num_items + np.searchsorted(catalogue, items)
    own.sort()
    own = own[np.append(True, own[1:] != own[:-1])]
    touched = np.bincount(own // num_items, minlength=int(users.max(initial=0)) + 1)
    # Rows of one user together: look-ups then stay near each other in `own`, which is far faster.
    order = np.argsort(users, kind="stable")
    found = np.full((len(users), per_positive), -1, dtype=np.int32)
    for start in range(0, len(users), SLICE_ROWS):
        rows = order[start : start + SLICE_ROWS]
        rows = rows[touched[users[rows]] < num_items]
        wanted = np.repeat(users[rows].astype(np.int64), per_positive)
        drawn = _draw(wanted, own, num_items, generator)
        found[rows] = catalogue[drawn].reshape(-1, per_positive)
    return found


def _draw(
    wanted: NDArray[np.int64],
    own: NDArray[np.int64],
    num_items: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """One free item for each entry of `wanted`, a user who has some."""
    drawn = np.empty(wanted.shape, dtype=np.int64)
    open_ = np.arange(len(wanted))
    for _ in range(MAX_ROUNDS):
        if not open_.size:
            break
        draw = generator.integers(0, num_items, size=open_.size)
        free = ~_contains(own, wanted[open_] * num_items + draw)
        drawn[open_[free]] = draw[free]
        open_ = open_[~free]
    _draw_exactly(drawn, open_, wanted, own, num_items, generator)
    return drawn


def _draw_exactly(
    drawn: NDArray[np.int64],
    open_: NDArray[np.int64],
    wanted: NDArray[np.int64],
    own: NDArray[np.int64],
    num_items: int,
    generator: np.random.Generator,
) -> None:
    """Fill the open draws from each user's list of free items; few users come here.

    `wanted` is sorted, so that the draws of one user stand together.
    """
    users, starts = np.unique(wanted[open_], return_index=True)
    bounds = np.append(starts, open_.size)
    for index, user in enumerate(users):
        rows = open_[bounds[index] : bounds[index + 1]]
        low, high = np.searchsorted(own, (user * num_items, (user + 1) * num_items))
        free = np.delete(np.arange(num_items), own[low:high] - user * num_items)
        drawn[rows] = generator.choice(free, size=rows.size)


def _contains(table: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are in the sorted table."""
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return table[place] == values
