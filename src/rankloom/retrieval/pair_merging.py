"""Pairs of adjacent tokens merged in many rows at once, whichever of the two comes first."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NO_PAIR = np.iinfo(np.int64).max
"""Found where no merge makes a token of two others; larger than every token."""


class PairTable:
    """Which token two tokens make, in either order.

    Args:
        merges: [merges, 2] pairs of tokens, in the order they were learned; where a pair occurs
            twice (once in each order), the first counts.
        first_merge: token that the first merge makes.
    """

    def __init__(self, merges: npt.NDArray[np.integer], first_merge: int) -> None:
        pairs = np.sort(np.asarray(merges, np.int64).reshape(-1, 2), axis=1)
        self.base = first_merge + len(pairs)
        keys = pairs[:, 0] * self.base + pairs[:, 1]
        self.keys, first = np.unique(keys, return_index=True)
        self.made = first_merge + first.astype(np.int64)

    def find(self, left: IntArray, right: IntArray) -> IntArray:
        """The token that each two make, `NO_PAIR` where no merge joins them; any shape."""
        if self.keys.size == 0:
            return np.full(left.shape, NO_PAIR)
        wanted = np.minimum(left, right) * self.base + np.maximum(left, right)
        place = np.minimum(np.searchsorted(self.keys, wanted), self.keys.size - 1)
        return np.where(self.keys[place] == wanted, self.made[place], NO_PAIR)


def merge_adjacent(
    tokens: IntArray, pairs: PairTable, apart: BoolArray | None = None
) -> tuple[IntArray, IntArray]:
    """Segment rows as byte-pair encoding does: the earliest learned merge first, left to right.

    Every round makes one merge in each row that still has one, so that the rounds are as many as
    the merges of one row and no loop runs over rows.

    Args:
        tokens: [rows, width] with 0 after the last token of a row.
        pairs: the merges.
        apart: [rows, width] True where a token may not be joined to the one before it; None:
            nowhere.

    Returns:
        tokens [rows, width], each at the place of the first one it was made of and 0 at the places
        of the others, and for each place the place of the last one [rows, width].
    """
    rows, width = tokens.shape
    # One column more, of padding: what follows a row's last token.
    merged = np.concatenate([tokens.astype(np.int64), np.zeros((rows, 1), np.int64)], axis=1)
    after = np.tile(np.arange(1, width + 2), (rows, 1))
    before = np.tile(np.arange(-1, width), (rows, 1))
    barred = np.zeros((rows, width + 1), np.bool_)
    if apart is not None:
        barred[:, :width] = apart
    made = pairs.find(merged[:, :-1], merged[:, 1:])  # [rows, width]: with the token after it
    made[barred[:, 1:]] = NO_PAIR
    while rows and width:
        place = made.argmin(1)
        best = made[np.arange(rows), place]
        row = np.flatnonzero(best != NO_PAIR)
        if row.size == 0:
            break
        left = place[row]
        right = after[row, left]
        beyond = after[row, right]
        merged[row, left] = best[row]
        merged[row, right] = 0
        made[row, right] = NO_PAIR
        after[row, left] = beyond
        before[row, beyond] = left
        follows = pairs.find(merged[row, left], merged[row, beyond])
        made[row, left] = np.where(barred[row, beyond], NO_PAIR, follows)
        first = before[row, left]
        row, left, first = row[first >= 0], left[first >= 0], first[first >= 0]
        precedes = pairs.find(merged[row, first], merged[row, left])
        made[row, first] = np.where(barred[row, left], NO_PAIR, precedes)
    return merged[:, :-1], after[:, :-1] - 1
