"""Users' item sequences, and batches of them.

Items have numbers: 1 to `num_items` in the order of the catalogue, 0 is padding. Row `number - 1`
of a table of vectors or codes belongs to item `number`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

IntArray = npt.NDArray[np.int64]

HeldOut = Literal["valid", "test"]
"""The held-out item of each user: the last one is `test`, the one before it `valid`."""


@dataclass(frozen=True)
class Histories:
    """Item sequences of users, oldest first, one user after another."""

    items: IntArray
    """[positions] item numbers, from 1."""
    offsets: IntArray
    """[users + 1]: user u holds items[offsets[u]:offsets[u + 1]]; starts at 0."""
    num_items: int
    """Items of the catalogue."""

    @classmethod
    def from_lists(cls, sequences: Sequence[npt.ArrayLike], num_items: int) -> "Histories":
        """Histories of lists of item numbers.

        Raises:
            ValueError: a number is not in 1..num_items.
        """
        parts = [np.asarray(sequence, np.int64) for sequence in sequences]
        lengths = np.fromiter((part.size for part in parts), np.int64, len(parts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        items = np.concatenate([np.empty(0, np.int64), *parts])
        if items.size and not (items.min() >= 1 and items.max() <= num_items):
            raise ValueError(
                f"item numbers go from 1 to num_items; got {items.min()} to {items.max()} of "
                f"{num_items} items"
            )
        return cls(items, offsets, num_items)

    @property
    def num_users(self) -> int:
        """Number of sequences."""
        return self.offsets.size - 1

    @property
    def lengths(self) -> IntArray:
        """[users] items of each user."""
        return np.diff(self.offsets)

    def of(self, user: int) -> IntArray:
        """The sequence of one user, by its place from 0."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def counts(self) -> IntArray:
        """[items] how often each item occurs; entry i is of item number i + 1."""
        return np.bincount(self.items, minlength=self.num_items + 1)[1:]

    def without_last(self, count: int) -> "Histories":
        """Every sequence without its last `count` items; shorter ones become empty."""
        return self._first(np.maximum(self.lengths - count, 0))

    def training(self) -> "Histories":
        """What leave-one-out trains on: every sequence without its last two items.

        Sequences of fewer than three items have nothing to hold out and are trained on whole.
        """
        return self._first(np.where(self.lengths < 3, self.lengths, self.lengths - 2))

    def held_out(self, split: HeldOut) -> tuple["Histories", IntArray, IntArray]:
        """Contexts and targets of leave-one-out.

        Users of fewer than three items have no target and are left out. The context of `test`
        holds the validation item.

        Returns:
            contexts [kept], the target of each [kept], and the place of each user in these
            histories [kept].
        """
        back = 1 if split == "test" else 2
        users = np.flatnonzero(self.lengths >= 3)
        targets = self.items[self.offsets[1:][users] - back]
        contexts = [self.of(int(user))[:-back] for user in users]
        return Histories.from_lists(contexts, self.num_items), targets, users

    def _first(self, kept: IntArray) -> "Histories":
        """The first `kept` items of each sequence."""
        place = np.arange(self.items.size) - np.repeat(self.offsets[:-1], self.lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        return Histories(self.items[place < np.repeat(kept, self.lengths)], offsets, self.num_items)


@dataclass(frozen=True)
class HistoryBatch:
    """Some histories, padded at the end, with what is to be predicted of them."""

    items: Int[Tensor, "batch seq"]
    """int64 item numbers, oldest first; 0 after the last."""
    targets: Int[Tensor, "batch seq"] | None = None
    """int64: at each position the item to be predicted after it, 0 where there is none. None at
    serving."""
    users: Int[Tensor, " batch"] | None = None
    """int64 user numbers from 1; 0 or None: unknown."""

    @property
    def size(self) -> int:
        """Rows."""
        return self.items.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Items of each row."""
        return (self.items > 0).sum(1)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "HistoryBatch":
        """The batch on another device."""
        moved = {
            part.name: value.to(device, non_blocking=non_blocking)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor)
        }
        return replace(self, **moved)


def pad_histories(sequences: Sequence[npt.ArrayLike], max_length: int) -> Int[Tensor, "batch seq"]:
    """The newest `max_length` items of each sequence, padded with 0 at the end.

    The width is that of the longest one, and at least 1: an empty history is a row of padding.
    """
    newest = [np.asarray(sequence, np.int64)[-max_length:] for sequence in sequences]
    width = max([1, *(sequence.size for sequence in newest)])
    padded = np.zeros((len(newest), width), np.int64)
    for row, sequence in enumerate(newest):
        padded[row, : sequence.size] = sequence
    return torch.from_numpy(padded)
