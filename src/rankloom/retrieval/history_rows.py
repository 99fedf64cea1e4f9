"""Rows of histories as padded batches, and the batches of an evaluation."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rankloom.retrieval.histories import Histories, HistoryBatch, IntArray


def pad_ranges(
    items: IntArray, starts: IntArray, lengths: IntArray, width: int
) -> Int[Tensor, "batch seq"]:
    """`items[start:start + length]` of every row, padded with 0 at the end to `width`.

    Args:
        items: [positions] what rows are ranges of.
        starts: [batch] first position of each row.
        lengths: [batch] positions of each row, at most `width`.
        width: columns of the result.
    """
    place = np.arange(width)
    real = place < lengths[:, None]  # [batch, seq]
    index = np.where(real, starts[:, None] + place, 0)
    if items.size == 0:
        return torch.zeros(index.shape, dtype=torch.int64)
    return torch.from_numpy(np.where(real, items[index], 0))


def evaluation_batches(
    contexts: Histories, users: IntArray | None, batch_size: int, max_length: int
) -> tuple[Iterator[HistoryBatch], IntArray]:
    """All contexts once, in batches of similar length, without targets.

    Args:
        contexts: histories to predict from; they may be empty.
        users: [contexts] place of each context's user, from 0, as `Histories.held_out` gives them;
            the batches hold it as a number from 1. None: the users are unknown.
        batch_size: rows of a batch.
        max_length: the newest items that are kept of each context.

    Returns:
        The batches, shortest contexts first, and the inverse order: row `inverse[i]` of what the
        batches give one after another is of context i.

    Raises:
        ValueError: `batch_size` or `max_length` is below 1, or there is not one user for each
            context.
    """
    if batch_size < 1 or max_length < 1:
        raise ValueError(
            "batch_size and max_length must be positive; "
            f"got batch_size={batch_size}, max_length={max_length}"
        )
    if users is not None and len(users) != contexts.num_users:
        raise ValueError(f"one user for each context: got {len(users)} of {contexts.num_users}")
    lengths = np.minimum(contexts.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return _in_order(contexts, users, order, lengths, batch_size), inverse


def _in_order(
    contexts: Histories,
    users: IntArray | None,
    order: IntArray,
    lengths: IntArray,
    batch_size: int,
) -> Iterator[HistoryBatch]:
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        kept = lengths[rows]
        width = max(1, int(kept.max()))
        items = pad_ranges(contexts.items, contexts.offsets[1:][rows] - kept, kept, width)
        numbers = None if users is None else torch.from_numpy(users[rows] + 1)
        yield HistoryBatch(items, users=numbers)
