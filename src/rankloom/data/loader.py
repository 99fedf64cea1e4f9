"""Batches of a stored split, in order or shuffled, for one rank of several.

Training (`shuffle=True`): every row once per epoch, or (`scenario_power`) as many draws, balanced
over the scenarios. The sequence of rows that batches are cut from depends on (seed, epoch) only;
inside a batch rows stand as stored. With several ranks, step k of all ranks together visits the
rows that step k of a single process with `world_size` times the batch would. Evaluation
(`shuffle=False`): rows as stored; each rank has a range of its own.

The number of batches follows from the rank with the fewest rows, and is the same for every rank;
rows that are left over join the last batch. So ranks never wait for each other, no row is dropped,
and (`drop_single`) a last batch of one row does not arise: its row joins the batch before.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from rankloom.batch import Batch
from rankloom.data.balanced import BalancedRows, BalancedShuffle
from rankloom.data.order import BlockShuffle, FullShuffle, Order, StoredOrder
from rankloom.data.prefetch import prefetch
from rankloom.data.store import StoredSplit

MAX_PERMUTATION_BYTES = 2**30
"""Largest permutation of a full shuffle; 8 bytes per row, so 134 million rows."""
MEMORY_SHARE = 0.5
"""Largest share of the machine's (or the device's free) memory that a split may take to be shuffled
row by row (or kept on the device)."""

_ORDERS = ("full", "block", "balanced")


class Loader:
    """Iterates over the batches of a split.

    Every `iter` starts the epoch from its beginning, except the first one after `restore`. The same
    epoch gives the same batches each time: call `set_epoch` before every epoch of training.

    Args:
        split: the rows.
        batch_size: rows of a batch, per rank.
        shuffle: whether rows are visited in random order.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
        order: `full` draws one permutation of all rows; `block` shuffles blocks, and rows inside
            windows of blocks; `auto` takes `full` when the permutation is at most 1 GiB and the
            rows are at most half of the machine's memory, so that random reads stay in memory.
        device: where batches are delivered. On CUDA the whole split is moved there once when it
            takes at most half of the free memory; otherwise batches are made ahead and moved from
            pinned memory.
        drop_single: whether a last batch of one row is joined with the batch before.
        scenario_power: None: every row once per epoch. Otherwise the share of a scenario's rows in
            an epoch is proportional to their number to this power, 0 to 1
            (`rankloom.data.balanced`); `order` stays `auto`.

    Raises:
        ValueError: sizes, rank or order that make no sense, too few rows to train on, or
            `scenario_power` without scenarios, without shuffling, or for more rows than a full
            shuffle takes.
    """

    split: StoredSplit
    """The rows; on the device when they are resident there."""
    batch_size: int
    """Rows of a batch."""
    order: str
    """Order chosen: `stored`, `full`, `block` or `balanced`."""
    resident: bool
    """Whether the rows lie on the device."""

    def __init__(
        self,
        split: StoredSplit,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Literal["auto", "full", "block"] = "auto",
        device: torch.device | str = "cpu",
        drop_single: bool = True,
        scenario_power: float | None = None,
    ) -> None:
        _check(split, batch_size, rank, world_size, order, seed)
        if shuffle and drop_single and (batch_size < 2 or split.rows < 2 * world_size):
            raise ValueError(
                "training batches need at least 2 rows: "
                f"got batch_size={batch_size}, {split.rows} rows for {world_size} ranks"
            )
        self._device = _resolve(device)
        self.resident = self._device.type == "cuda" and _fits_device(split, self._device)
        self.split = split.to(self._device) if self.resident else split
        self.batch_size = batch_size
        self.order = "stored" if not shuffle else order if order != "auto" else _choose(split)
        self._asked_order: str = order
        self._scenarios: BalancedRows | None = None
        if scenario_power is not None:
            _check_balanced(split, shuffle, order)
            self._scenarios = BalancedRows(split.scenarios(), scenario_power)
            self.order = self._asked_order = "balanced"
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._rank_rows = StoredOrder(split.rows, rank, world_size).rows
        self._num_batches = _num_batches(
            split.rows // world_size, self._rank_rows, batch_size, 2 if drop_single else 1
        )
        self._epoch = 0
        self._position = 0
        self._resume_at = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    @property
    def rows(self) -> int:
        """Rows of an epoch, on this rank."""
        return self._rank_rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next `iter` runs through.

        A position that was restored for this very epoch is kept.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative; got {epoch}")
        if epoch != self._epoch:
            self._resume_at = 0
        self._epoch = epoch
        self._position = self._resume_at

    def state(self) -> dict[str, int]:
        """Where the loader stands: plain numbers that `restore` takes.

        `position` counts the batches of the epoch that were handed out.
        """
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def restore(self, state: dict[str, int]) -> None:
        """Continue where a loader of the same split and settings stood.

        The next `iter` yields the batches that were still to come. An order chosen by `auto` on
        another machine is taken over.

        Raises:
            ValueError: the state is of another split, batch size, seed, rank or order.
        """
        own = self._identity()
        saved = ("stored", *_ORDERS)[state["order"]]
        if self._asked_order == "auto" and {self.order, saved} <= {"full", "block"}:
            self.order = saved
            own = self._identity()
        different = [
            f"{name} {state.get(name)}, here {own[name]}"
            for name in own
            if state.get(name) != own[name]
        ]
        if different:
            raise ValueError(f"loader state does not fit: {'; '.join(different)}")
        if not 0 <= state["position"] <= len(self):
            raise ValueError(f"position must be 0 to {len(self)}; got {state['position']}")
        self._epoch = state["epoch"]
        self._resume_at = self._position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the epoch."""
        first, self._resume_at = self._resume_at, 0
        batches = self._batches(first)
        if self._device.type == "cuda" and not self.resident:
            batches = prefetch(batches)
        self._position = first
        for position, batch in enumerate(batches, start=first + 1):
            self._position = position
            yield batch

    def _batches(self, first: int) -> Iterator[Batch]:
        order = self._make_order()
        for index in range(first, len(self)):
            start = index * self.batch_size
            stop = start + self.batch_size if index + 1 < len(self) else self._rank_rows
            if isinstance(order, StoredOrder):
                batch = self.split.slice(order.start + start, order.start + stop)
            else:
                # Which rows make a batch is drawn; inside it they stand as stored, so that every
                # shard is read once and forwards.
                rows = order.select(start, stop).sort().values
                batch = self.split.gather_ascending(rows.to(self.split.device))
            yield batch if self.resident else self._deliver(batch)

    def _deliver(self, batch: Batch) -> Batch:
        if self._device.type == "cuda":
            batch = batch.map(lambda tensor: tensor.pin_memory())
            return batch.to(self._device, non_blocking=True)
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def _make_order(self) -> Order:
        rows, rank, world_size = self.split.rows, self._rank, self._world_size
        if self.order == "stored":
            return StoredOrder(rows, rank, world_size)
        if self.order == "block":
            return BlockShuffle(rows, self._seed, self._epoch, rank, world_size)
        order: FullShuffle | BalancedShuffle
        if self._scenarios is None:
            order = FullShuffle(rows, self._seed, self._epoch, rank, world_size)
        else:
            order = self._scenarios.draw(self._seed, self._epoch, rank, world_size)
        return order.to(self._device) if self.resident else order

    def _identity(self) -> dict[str, int]:
        scenarios = {} if self._scenarios is None else self._scenarios.identity()
        return scenarios | {
            "seed": self._seed,
            "rows": self.split.rows,
            "batch_size": self.batch_size,
            "num_batches": len(self),
            "rank": self._rank,
            "world_size": self._world_size,
            "order": 0 if self.order == "stored" else 1 + _ORDERS.index(self.order),
        }


def _check(
    split: StoredSplit, batch_size: int, rank: int, world_size: int, order: str, seed: int
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive; got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size; got {rank}, {world_size}")
    if order not in ("auto", "full", "block"):
        raise ValueError(f"order must be auto, full or block; got {order!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative; got {seed}")


def _check_balanced(split: StoredSplit, shuffle: bool, order: str) -> None:
    if not shuffle or order != "auto":
        raise ValueError(
            "scenario_power draws rows in an order of its own: it needs shuffle=True and "
            f'order="auto"; got shuffle={shuffle}, order={order!r}'
        )
    if split.rows * 8 > MAX_PERMUTATION_BYTES:
        raise ValueError(
            f"balanced sampling takes at most {MAX_PERMUTATION_BYTES // 8} rows; got {split.rows}: "
            "sample proportionally, or prepare a sample of the rows"
        )


def _resolve(device: torch.device | str) -> torch.device:
    """The device with its number: the current one of this thread is not that of another."""
    resolved = torch.device(device)
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def _num_batches(least_rows: int, own_rows: int, batch_size: int, smallest: int) -> int:
    """Batches of every rank; fewer rows than ranks give one batch to each rank that has a row."""
    if least_rows == 0:
        return min(own_rows, 1)
    full, rest = divmod(least_rows, batch_size)
    return max(full + (rest >= smallest), 1)


def _choose(split: StoredSplit) -> str:
    small = split.rows * 8 <= MAX_PERMUTATION_BYTES
    in_memory = split.memory_bytes() <= MEMORY_SHARE * _machine_memory_bytes()
    return "full" if small and in_memory else "block"


def _fits_device(split: StoredSplit, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return split.memory_bytes() + 8 * split.rows <= MEMORY_SHARE * free


def _machine_memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit_file = Path("/sys/fs/cgroup/memory.max")
    if limit_file.is_file():
        limit = limit_file.read_text(encoding="ascii").strip()
        if limit.isdigit():
            return min(physical, int(limit))
    return physical
