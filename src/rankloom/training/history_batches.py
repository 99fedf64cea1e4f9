"""Training batches of users' item sequences, rows of similar length together.

Most histories are short: where a batch mixes lengths, most of it is padding. So rows are shuffled,
sorted by length inside windows of many batches, cut into batches, and the batches are shuffled.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from rankloom.data.order import generator_for
from rankloom.retrieval.histories import Histories, HistoryBatch, IntArray
from rankloom.retrieval.history_rows import pad_ranges
from rankloom.training.place import Place, count_batches

WINDOW_BATCHES = 50
"""Batches' worth of shuffled rows that are sorted by length together."""

TrainingRows = Literal["users", "prefixes"]
"""What a training row is, as models say by their `training_rows`."""


class HistoryBatches:
    """Batches of histories with targets, every row once per epoch.

    `users`: a row is a user's sequence without its last item, its targets the items after each; of
    long sequences the newest `max_length`. `prefixes`: a row is one target with the at most
    `max_length` items before it; its target stands at the row's last position. Sequences of fewer
    than two items give no row.

    What a batch holds depends on (seed, epoch, position) alone, so that a training that is taken up
    anywhere goes on exactly. A last batch of one row joins the one before it.

    Args:
        histories: the training part of the sequences.
        batch_size: rows of a batch.
        max_length: most items of a row.
        rows: what a row is.
        seed: seed of the order.

    Raises:
        ValueError: sizes or seed that make no sense, or no sequence of two items.
    """

    order = "similar_length"
    """How rows are ordered, for the record."""
    batch_size: int
    """Rows of a batch."""
    rows: int
    """Rows of an epoch."""

    def __init__(
        self,
        histories: Histories,
        batch_size: int,
        max_length: int,
        *,
        rows: TrainingRows = "users",
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or max_length < 1 or seed < 0:
            raise ValueError(
                "batch_size and max_length must be positive and seed not negative; "
                f"got batch_size={batch_size}, max_length={max_length}, seed={seed}"
            )
        if rows not in ("users", "prefixes"):
            raise ValueError(f"rows must be users or prefixes; got {rows!r}")
        self.batch_size = batch_size
        self._items = histories.items
        self._whole = rows == "users"
        place_rows = _whole_sequences if self._whole else _prefixes
        self._users, self._ends, self._lengths = place_rows(histories, max_length)
        self.rows = len(self._ends)
        if self.rows == 0:
            raise ValueError(
                "training needs sequences of at least two items; "
                f"got {histories.num_users} sequences, none as long"
            )
        self._seed = seed
        self._num_batches = count_batches(self.rows, batch_size)
        identity = {
            "seed": seed,
            "rows": self.rows,
            "positions": len(self._items),
            "batch_size": batch_size,
            "max_length": max_length,
            "whole_sequences": int(self._whole),
        }
        self._place = Place(self._num_batches, identity)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next `iter` runs through; errors as in `Place.set_epoch`."""
        self._place.set_epoch(epoch)

    def state(self) -> dict[str, int]:
        """The position after the batch given last."""
        return self._place.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go to a position that `state` gave; errors as in `Place.restore`."""
        self._place.restore(state)

    def __iter__(self) -> Iterator[HistoryBatch]:
        """Batches from the current position to the end of the epoch."""
        remaining = self._place.remaining()
        batches = self._batches_of(self._place.epoch)
        for number in remaining:
            self._place.position = number + 1
            yield self._batch(batches[number])

    def _batches_of(self, epoch: int) -> list[IntArray]:
        """Rows of every batch of an epoch."""
        generator = generator_for(self._seed, epoch)
        shuffled = torch.randperm(self.rows, generator=generator).numpy()
        window = np.arange(self.rows) // (WINDOW_BATCHES * self.batch_size)
        # By length inside each window; equal lengths stay shuffled.
        ordered = shuffled[np.lexsort((self._lengths[shuffled], window))]
        cuts = np.arange(1, self._num_batches) * self.batch_size
        batches = np.split(ordered, cuts)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _batch(self, rows: IntArray) -> HistoryBatch:
        ends, lengths = self._ends[rows], self._lengths[rows]
        starts, width = ends - lengths, int(lengths.max())
        items = pad_ranges(self._items, starts, lengths, width)
        if self._whole:
            targets = pad_ranges(self._items, starts + 1, lengths, width)
        else:
            targets = torch.zeros_like(items)
            targets[torch.arange(len(rows)), torch.from_numpy(lengths - 1)] = torch.from_numpy(
                self._items[ends]
            )
        return HistoryBatch(items, targets, torch.from_numpy(self._users[rows] + 1))


def _whole_sequences(histories: Histories, max_length: int) -> tuple[IntArray, IntArray, IntArray]:
    """User (from 0), position of the last target and number of inputs of every row."""
    users = np.flatnonzero(histories.lengths >= 2)
    return (
        users,
        histories.offsets[1:][users] - 1,
        np.minimum(histories.lengths[users] - 1, max_length),
    )


def _prefixes(histories: Histories, max_length: int) -> tuple[IntArray, IntArray, IntArray]:
    """The same, where every position but a sequence's first is the target of a row."""
    users = np.repeat(np.arange(histories.num_users), histories.lengths)  # [positions]
    before = np.arange(users.size) - histories.offsets[users]  # items before each position
    ends = np.flatnonzero(before > 0)
    return users[ends], ends, np.minimum(before[ends], max_length)
