"""Rows drawn by scenario: an epoch in which small scenarios have more than their share.

Of an epoch of N draws from N rows, scenario s with n[s] rows gets

    q[s] = N n[s]^a / sum over t of n[t]^a

draws, rounded so that they add up to N (largest remainder, ties to the lower index). a = 0 gives
every scenario the same number, a = 1 its own rows. The draws of all scenarios stand in random
order. A scenario's own draws run through its rows in random order, without repetition until all of
them were seen, then again in a new order. They go on from epoch to epoch, so that a large scenario,
of which an epoch sees a part, is seen whole after some epochs.

An epoch depends on (seed, epoch) alone, like every order: nothing is carried over.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rankloom.data.order import generator_for, rank_rows

# Last part of a stream, so that no two uses share a generator.
_PLACES, _WHOLE_PASSES, _CUT_PASS = 1, 2, 3


class BalancedShuffle:
    """The draws of one rank in one epoch: entries rank, rank + world_size, ... of all draws."""

    def __init__(self, draws: Int[Tensor, " draws"], rank: int, world_size: int) -> None:
        self.rows = rank_rows(len(draws), rank, world_size)
        self._draws = draws if world_size == 1 else draws[rank::world_size].contiguous()

    def select(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Row numbers at the given positions."""
        return self._draws[start:stop]

    def to(self, device: torch.device | str) -> "BalancedShuffle":
        """The same draws on another device."""
        return BalancedShuffle(self._draws.to(device), 0, 1)


class BalancedRows:
    """The rows of a split by scenario, and how many of each an epoch draws.

    Memory: 8 bytes per row, and about 40 while an epoch is drawn, of which 8 stay through the
    epoch.

    Args:
        scenarios: int scenario index of every row, from 0; index 0 (unknown) is a scenario like
            the others where rows have it.
        power: a of the module's rule, 0 to 1.

    Raises:
        ValueError: the power is not in 0 to 1, or there are no rows.
    """

    draws: Int[Tensor, " scenarios"]
    """int64 draws of every scenario in an epoch; they add up to the number of rows."""

    def __init__(self, scenarios: Int[Tensor, " rows"], power: float) -> None:
        if not 0 <= power <= 1:
            raise ValueError(f"scenario_power must be 0 to 1; got {power}")
        if not len(scenarios):
            raise ValueError("balanced sampling needs rows; got a split without any")
        self._power = power
        self._rows, counts = _by_value(scenarios.cpu())
        self._counts = counts.tolist()
        self.draws = _draws(counts, power)

    def identity(self) -> dict[str, int]:
        """Whole numbers that tell two ways of drawing from the same rows apart."""
        return {"scenario_power_billionths": round(self._power * 1e9)}

    def draw(self, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> BalancedShuffle:
        """The draws of an epoch for one rank."""
        owner = torch.repeat_interleave(torch.arange(len(self.draws)), self.draws)  # [draws]
        places = torch.randperm(len(owner), generator=generator_for(seed, epoch, 0, _PLACES))
        # The places that each scenario's draws go to, scenario by scenario and ascending, so that
        # its draws keep their order.
        place, _ = _by_value(owner[places])
        drawn = torch.empty_like(place)
        drawn[place] = torch.cat(list(self._by_scenario(seed, epoch)))
        return BalancedShuffle(drawn, rank, world_size)

    def _by_scenario(self, seed: int, epoch: int) -> Iterator[Int[Tensor, " draws"]]:
        """Row numbers that each scenario draws in the epoch, in order."""
        start = 0
        for scenario, (count, draws) in enumerate(
            zip(self._counts, self.draws.tolist(), strict=True)
        ):
            if draws:
                rows = self._rows[start : start + count]
                yield rows[_passes(count, epoch * draws, draws, seed, epoch, scenario)]
            start += count


def _passes(
    count: int, first: int, draws: int, seed: int, epoch: int, scenario: int
) -> Int[Tensor, " draws"]:
    """Entries first to first + draws of endless passes over `count` rows, each a permutation."""
    parts = []
    begin, end = first // count, -(-(first + draws) // count)  # passes touched
    # A pass that an epoch does not see whole is drawn from a stream of its own: the epochs that
    # share it must agree. The passes between are drawn together, however many and small they are.
    cut_begin, cut_end = first % count > 0, (first + draws) % count > 0
    if cut_begin:
        parts.append(_pass(count, seed, begin, scenario))
    whole = end - begin - cut_begin - cut_end
    if whole > 0:
        generator = generator_for(seed, epoch, scenario, _WHOLE_PASSES)
        keys = torch.rand(whole, count, dtype=torch.float64, generator=generator)
        parts.append(keys.argsort(dim=1, stable=True).flatten())  # [passes * rows]
    if cut_end and not (cut_begin and end - begin == 1):
        parts.append(_pass(count, seed, end - 1, scenario))
    return torch.cat(parts)[first % count :][:draws]


def _pass(count: int, seed: int, number: int, scenario: int) -> Int[Tensor, " rows"]:
    return torch.randperm(count, generator=generator_for(seed, number, scenario, _CUT_PASS))


def _draws(counts: Int[Tensor, " scenarios"], power: float) -> Int[Tensor, " scenarios"]:
    """Draws of each scenario; none of a scenario without rows."""
    rows = counts.numpy()
    mass = np.where(rows > 0, rows.astype(np.float64) ** power, 0.0)
    share = mass / mass.sum() * rows.sum()
    draws = np.floor(share).astype(np.int64)
    # Rounded, so that shares that are equal but for rounding errors stay tied.
    rest = np.round(share - draws, 6)
    rest[rows == 0] = -1.0
    first = np.argsort(-rest, kind="stable")[: rows.sum() - draws.sum()]
    draws[first] += 1
    return torch.from_numpy(draws)


def _by_value(
    values: Int[Tensor, " rows"],
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " values"]]:
    """Places of the values 0, 1, ... in ascending order, value by value, and how many of each."""
    counts = values.bincount()
    # numpy sorts 16-bit integers by radix, many times faster than torch sorts.
    small = values.short() if len(counts) <= 2**15 else values
    return torch.from_numpy(small.numpy().argsort(kind="stable")), counts
