"""The order in which rows are visited: as stored, fully shuffled, or shuffled block by block.

An order is a function of (rows, seed, epoch) alone: it does not depend on threads, devices, batch
size or on what was read before, so that any position of any epoch can be resumed.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

BLOCK_ROWS = 2**14
"""Rows of one block of the block shuffle: they are read one after another."""
WINDOW_BLOCKS = 64
"""Blocks whose rows the block shuffle mixes; 2^20 rows together."""


class Order(Protocol):
    """The rows of one rank in one epoch."""

    @property
    def rows(self) -> int:
        """Rows of this rank."""

    def select(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Row numbers at the positions start <= position < stop of this rank."""


def rank_rows(rows: int, rank: int, world_size: int) -> int:
    """Rows that a rank gets; ranks differ by one row at most."""
    return rows // world_size + (rank < rows % world_size)


class StoredOrder:
    """Rows as they are stored; each rank has a range of its own, ranks in order."""

    def __init__(self, rows: int, rank: int, world_size: int) -> None:
        self.rows = rank_rows(rows, rank, world_size)
        self.start = rank * (rows // world_size) + min(rank, rows % world_size)
        """First row of the range."""

    def select(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Row numbers at the given positions."""
        return torch.arange(self.start + start, self.start + stop)


class FullShuffle:
    """One permutation of all rows; rank r takes its entries r, r + world_size, ...

    Memory: 8 bytes per row of the split while it is drawn, then those of the rank.
    """

    def __init__(self, rows: int, seed: int, epoch: int, rank: int, world_size: int) -> None:
        self.rows = rank_rows(rows, rank, world_size)
        order = torch.randperm(rows, generator=generator_for(seed, epoch))
        self._order = order if world_size == 1 else order[rank::world_size].contiguous()

    def select(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Row numbers at the given positions."""
        return self._order[start:stop]

    def to(self, device: torch.device | str) -> "FullShuffle":
        """The same order, its permutation on another device."""
        moved = object.__new__(FullShuffle)
        moved.rows = self.rows
        moved._order = self._order.to(device)
        return moved


class BlockShuffle:
    """Blocks of consecutive rows in random order, rows mixed inside windows of several blocks.

    Reads whole blocks, so that data that are larger than memory are read from disk nearly in order.
    Rank r takes the entries r, r + world_size, ... of the resulting order.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        block_rows: int = BLOCK_ROWS,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        self.rows = rank_rows(rows, rank, world_size)
        self._rank, self._world_size = rank, world_size
        self._seed, self._epoch = seed, epoch
        num_blocks = -(-rows // block_rows)
        blocks = torch.randperm(num_blocks, generator=generator_for(seed, epoch))
        self._windows = blocks.split(window_blocks)  # type: ignore[no-untyped-call]
        self._block_rows = block_rows
        self._last_row = rows
        lengths = [
            int((self._ends(window) - window * block_rows).sum()) for window in self._windows
        ]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._drawn: tuple[int, Tensor] | None = None

    def select(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Row numbers at the given positions."""
        first = start * self._world_size + self._rank
        last = (stop - 1) * self._world_size + self._rank  # in the order of all ranks
        if stop <= start:
            return torch.empty(0, dtype=torch.int64)
        parts = []
        window = int(np.searchsorted(self._starts, first, side="right")) - 1
        while window < len(self._windows) and self._starts[window] <= last:
            begin = int(self._starts[window])
            skip = max(first - begin, (self._rank - begin) % self._world_size)
            parts.append(self._rows_of(window)[skip : last - begin + 1 : self._world_size])
            window += 1
        return torch.cat(parts)

    def block_ranges(self, window: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that a window reads."""
        blocks = self._windows[window]
        for block, end in zip(blocks.tolist(), self._ends(blocks).tolist(), strict=True):
            yield block * self._block_rows, end

    def _ends(self, blocks: Tensor) -> Tensor:
        return ((blocks + 1) * self._block_rows).clamp(max=self._last_row)

    def _rows_of(self, window: int) -> Tensor:
        """Rows of a window in the order they are visited; the latest window is remembered."""
        if self._drawn is None or self._drawn[0] != window:
            ranges = [torch.arange(start, stop) for start, stop in self.block_ranges(window)]
            rows = torch.cat(ranges)
            generator = generator_for(self._seed, self._epoch, window)
            self._drawn = window, rows[torch.randperm(len(rows), generator=generator)]
        return self._drawn[1]


def generator_for(seed: int, *stream: int) -> torch.Generator:
    """A generator of its own for every (seed, stream); zeros that end a stream do not count."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
