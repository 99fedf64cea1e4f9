"""Ids with merged tokens: pairs of adjacent tokens become one, and back."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
PADDING = 0


class MergedRows:
    """Ids in which one pair after another is replaced; only rows that may hold it are looked at.

    Args:
        tokens: [items, width], 0 after an id's end; copied.
    """

    def __init__(self, tokens: IntArray) -> None:
        self.tokens = tokens.copy()
        used = np.argwhere(tokens != PADDING)
        values = tokens[used[:, 0], used[:, 1]]
        order = np.argsort(values, kind="stable")
        present, starts = np.unique(values[order], return_index=True)
        rows = np.split(used[order, 0], starts[1:])
        # Rows that held a token when it came up: some may have lost it to a merge since. Without
        # any token, `split` still gives one part.
        self._rows_of = {int(token): np.unique(r) for token, r in zip(present, rows, strict=False)}

    def rows_with(self, left: int, right: int) -> npt.NDArray[np.int64]:
        """[rows] places of the ids in which `right` follows `left`, ascending."""
        nobody = np.empty(0, np.int64)
        rows = min(self._rows_of.get(left, nobody), self._rows_of.get(right, nobody), key=len)
        return rows[_occurrences(self.tokens[rows], left, right).any(1)]

    def merge(self, left: int, right: int, merged: int) -> npt.NDArray[np.int64]:
        """Replace the pair everywhere, from the left and without overlap.

        Returns:
            [rows] places of the ids that changed.
        """
        rows = self.rows_with(left, right)
        tokens = self.tokens[rows]
        found = _occurrences(tokens, left, right)
        kept = tokens != PADDING
        kept[:, 1:] &= ~found[:, :-1]
        tokens[found] = merged
        order = np.argsort(~kept, axis=1, kind="stable")
        tokens = np.take_along_axis(np.where(kept, tokens, PADDING), order, axis=1)
        self.tokens[rows] = tokens
        self._rows_of[merged] = rows
        return rows


def apply_merges(tokens: IntArray, merges: IntArray, first_merge: int) -> IntArray:
    """Tokens of many ids with every merge applied, in the order the merges were learned.

    Args:
        tokens: [items, width], 0 after an id's end.
        merges: [merges, 2] pairs of tokens.
        first_merge: token that the first merge makes.

    Returns:
        [items, width], 0 after an id's end.
    """
    if len(merges) == 0:
        return tokens
    rows = MergedRows(tokens)
    for number, (left, right) in enumerate(merges.tolist()):
        rows.merge(left, right, first_merge + number)
    return rows.tokens


def expand_merges(tokens: IntArray, merges: IntArray, first_merge: int) -> IntArray:
    """Tokens of many ids with every merged token replaced by what it was made of.

    The inverse of `apply_merges`; special tokens stay as they are.

    Args:
        tokens: [items, width], 0 after an id's end.
        merges: [merges, 2] pairs of tokens.
        first_merge: token that the first merge makes.

    Returns:
        [items, longest], 0 after an id's end.

    Raises:
        ValueError: a token is beyond the merges.
    """
    limit = first_merge + len(merges)
    if tokens.size and tokens.max() >= limit:
        raise ValueError(f"tokens must be below {limit}, the last merge's; got {tokens.max()}")
    parts = [[token] for token in range(first_merge)]
    for left, right in merges.tolist():
        parts.append(parts[left] + parts[right])
    sizes = np.fromiter((len(part) for part in parts), np.int64, len(parts))
    sizes[PADDING] = 0
    table = np.zeros((len(parts), int(sizes.max(initial=1))), np.int32)
    for token, part in enumerate(parts):
        table[token, : len(part)] = part
    lengths = sizes[tokens]  # [items, width]
    ends = np.cumsum(lengths, axis=1)
    starts = ends - lengths
    expanded = np.zeros((tokens.shape[0], int(ends[:, -1:].max(initial=0))), np.int32)
    for place in range(table.shape[1]):
        rows, columns = np.nonzero(lengths > place)
        expanded[rows, starts[rows, columns] + place] = table[tokens[rows, columns], place]
    return expanded


def _occurrences(tokens: IntArray, left: int, right: int) -> BoolArray:
    """[rows, width] where the pair begins, without overlap."""
    found = np.zeros(tokens.shape, np.bool_)
    found[:, :-1] = (tokens[:, :-1] == left) & (tokens[:, 1:] == right)
    if left == right:  # only a pair of equal tokens can overlap itself
        for column in range(1, tokens.shape[1]):
            found[:, column] &= ~found[:, column - 1]
    return found
