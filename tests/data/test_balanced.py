"""Balanced draws: shares by hand, passes without repetition, the same from any epoch on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data import loader as loader_module
from rankloom.data.assemble import Assembler
from rankloom.data.balanced import BalancedRows
from rankloom.data.columns import Columns
from rankloom.data.loader import Loader
from rankloom.data.shards import to_stored_batch
from rankloom.data.store import StoredSplit
from rankloom.schema import CategoricalField, Label, Schema


def scenarios_of(counts: list[int], seed: int = 0) -> torch.Tensor:
    """A scenario column in which scenario s has counts[s] rows, mixed."""
    column = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    order = torch.randperm(len(column), generator=torch.Generator().manual_seed(seed))
    return column[order]


def epoch_rows(rows: BalancedRows, seed: int, epoch: int) -> torch.Tensor:
    order = rows.draw(seed, epoch)
    return order.select(0, order.rows)


@pytest.mark.parametrize(
    ("counts", "power", "draws"),
    [
        ([0, 4, 2], 0.0, [0, 3, 3]),
        ([0, 4, 2], 1.0, [0, 4, 2]),
        ([16, 4], 0.5, [13, 7]),  # 20 * 4/6 = 13.33, 20 * 2/6 = 6.67
        ([3, 0, 3, 4], 0.0, [4, 0, 3, 3]),  # 10 / 3 each, what is left to the first
        ([1, 98, 1], 0.0, [34, 33, 33]),
        ([7, 11, 13, 1000], 1.0, [7, 11, 13, 1000]),
        ([5], 0.3, [5]),
    ],
)
def test_draws_worked_by_hand(counts: list[int], power: float, draws: list[int]) -> None:
    scenarios = scenarios_of(counts)
    rows = BalancedRows(scenarios, power)
    assert rows.draws.tolist() == draws
    for epoch in range(3):
        seen = scenarios[epoch_rows(rows, 1, epoch)]
        assert seen.bincount(minlength=len(counts)).tolist() == draws


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 25), min_size=1, max_size=5),
    power=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 5),
)
def test_each_scenario_passes_through_its_rows_over_epochs(
    counts: list[int], power: float, seed: int
) -> None:
    if not sum(counts):
        return
    scenarios = scenarios_of(counts, seed)
    rows = BalancedRows(scenarios, power)
    # Any epoch alone, from the last to the first: nothing is carried over.
    epochs = [epoch_rows(BalancedRows(scenarios, power), seed, epoch) for epoch in range(4)]
    for epoch in (3, 0, 2):
        assert torch.equal(epoch_rows(rows, seed, epoch), epochs[epoch])
    visited = torch.cat(epochs)
    for scenario, count in enumerate(counts):
        own = (scenarios == scenario).nonzero().flatten().tolist()
        seen = visited[scenarios[visited] == scenario].tolist()
        assert len(seen) == (4 * rows.draws[scenario] if count else 0)
        for start in range(0, len(seen) - count + 1, max(count, 1)):
            assert sorted(seen[start : start + count]) == own
        rest = seen[len(seen) // count * count :] if count else seen
        assert len(set(rest)) == len(rest)


def test_passes_differ_and_scenarios_are_mixed() -> None:
    scenarios = scenarios_of([40, 8])
    rows = BalancedRows(scenarios, 0.0)
    first = epoch_rows(rows, 0, 0)
    small = first[scenarios[first] == 1].tolist()
    passes = [tuple(small[start : start + 8]) for start in range(0, 24, 8)]
    assert len(set(passes)) == 3
    changes = sum(int(a != b) for a, b in pairwise(scenarios[first].tolist()))
    assert changes > 12  # of 47; 24 expected of a fair mix, 1 of scenarios one after another
    orders = {tuple(epoch_rows(rows, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize("counts", [[30, 30], [30, 30, 2]])
def test_scenarios_of_one_size_have_orders_of_their_own(counts: list[int]) -> None:
    """Whole passes in the first case, passes that the epoch cuts in the second."""
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    drawn = epoch_rows(BalancedRows(rows, 0.0), 0, 0)
    first = drawn[drawn < 30]
    second = drawn[(drawn >= 30) & (drawn < 60)] - 30
    assert len(first) == len(second) > 20
    assert not torch.equal(first, second)


def test_a_pass_is_uniform() -> None:
    """Row 0 of a scenario of 4 comes first in about a quarter of its passes: 1000 of them."""
    scenarios = torch.cat([torch.zeros(4, dtype=torch.int32), torch.ones(4000, dtype=torch.int32)])
    drawn = epoch_rows(BalancedRows(scenarios, 0.0), 3, 0)
    passes = drawn[drawn < 4][:2000].reshape(-1, 4)
    places = (passes == 0).nonzero()[:, 1].bincount(minlength=4)
    assert all(abs(count - 125) < 50 for count in places.tolist())


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="scenario_power must be 0 to 1; got -0.1"):
        BalancedRows(scenarios_of([2, 2]), -0.1)
    with pytest.raises(ValueError, match="needs rows"):
        BalancedRows(torch.zeros(0, dtype=torch.int32), 0.0)


SCHEMA = Schema(
    tables={"row": 10_000},
    categorical=(CategoricalField(name="row", table="row"),),
    labels=(Label(name="y"),),
    scenarios=("<unknown>", "large", "small"),
)


def scenario_split(large: int, small: int, rows_per_shard: int = 17) -> StoredSplit:
    """A split in memory whose only id is the number of the row."""
    rows = large + small
    scenarios = 1 + scenarios_of([large, small]).numpy()
    shards = [
        to_stored_batch(
            Columns(
                categorical=np.arange(start, stop, dtype=np.int32)[:, None],
                numeric=np.zeros((stop - start, 0), np.float32),
                labels=np.zeros((stop - start, 1), np.float32),
                scenario=scenarios[start:stop].astype(np.int32),
            )
        )
        for start, stop in (
            (start, min(start + rows_per_shard, rows)) for start in range(0, rows, rows_per_shard)
        )
    ]
    assembler = Assembler(SCHEMA, {}, {})
    return StoredSplit("train", shards, rows_per_shard, assembler, has_missing_labels=False)


def balanced(split: StoredSplit, batch_size: int = 10, power: float = 0.0, **more: int) -> Loader:
    return Loader(split, batch_size, shuffle=True, seed=5, scenario_power=power, **more)  # type: ignore[arg-type]


def numbers(loader: Loader) -> list[list[int]]:
    return [batch.categorical[:, 0].tolist() for batch in loader]


def test_the_loader_cuts_the_draws_into_batches() -> None:
    split = scenario_split(80, 23)
    loader = balanced(split)
    loader.set_epoch(2)
    assert (loader.order, loader.rows, len(loader)) == ("balanced", 103, 11)
    batches = numbers(loader)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    drawn = epoch_rows(BalancedRows(split.scenarios(), 0.0), 5, 2).tolist()
    assert batches == [sorted(drawn[start : start + 10]) for start in range(0, 103, 10)]
    scenarios = torch.cat([batch.scenario for batch in loader if batch.scenario is not None])
    assert scenarios.bincount().tolist() == [0, 52, 51]


@pytest.mark.parametrize("stop", [0, 4, 11])
def test_a_balanced_loader_resumes_exactly(stop: int) -> None:
    split = scenario_split(80, 23)
    unbroken, broken, resumed = balanced(split), balanced(split), balanced(split)
    for loader in (unbroken, broken):
        loader.set_epoch(3)
    expected = numbers(unbroken)
    batches = iter(broken)
    seen = [next(batches).categorical[:, 0].tolist() for _ in range(stop)]
    resumed.restore(broken.state())
    resumed.set_epoch(3)
    assert seen + numbers(resumed) == expected


def test_states_of_other_ways_of_drawing_are_refused() -> None:
    split = scenario_split(80, 23)
    plain = Loader(split, 10, shuffle=True, seed=5)
    with pytest.raises(ValueError, match="order 1, here 3"):
        balanced(split).restore(plain.state())
    with pytest.raises(ValueError, match="order 3, here 1"):
        plain.restore(balanced(split).state())
    with pytest.raises(ValueError, match="scenario_power_billionths 500000000, here 0"):
        balanced(split).restore(balanced(split, power=0.5).state())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_take_the_steps_of_one_process(world_size: int) -> None:
    split = scenario_split(80, 23)
    ranks = [
        numbers(balanced(split, 5, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    single = numbers(balanced(split, 5 * world_size))
    assert len({len(rank) for rank in ranks}) == 1
    for step in range(len(ranks[0]) - 1):  # the last one takes what is left over
        together = [row for rank in ranks for row in rank[step]]
        assert sorted(together) == single[step]
    every = sorted(row for rank in ranks for batch in rank for row in batch)
    assert every == sorted(row for batch in single for row in batch)


def test_what_the_loader_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    split = scenario_split(20, 5)
    with pytest.raises(ValueError, match="shuffle=True and order=.*got shuffle=False"):
        Loader(split, 5, scenario_power=0.0)
    with pytest.raises(ValueError, match="got shuffle=True, order='block'"):
        Loader(split, 5, shuffle=True, order="block", scenario_power=0.0)
    monkeypatch.setattr(loader_module, "MAX_PERMUTATION_BYTES", 24 * 8)
    with pytest.raises(ValueError, match="takes at most 24 rows; got 25: sample proportionally"):
        balanced(split)
    plain = Columns(
        categorical=np.zeros((4, 1), np.int32),
        numeric=np.zeros((4, 0), np.float32),
        labels=np.zeros((4, 1), np.float32),
    )
    without = SCHEMA.model_copy(update={"scenarios": ()})
    assembler = Assembler(without, {}, {})
    split = StoredSplit("train", [to_stored_batch(plain)], 9, assembler, has_missing_labels=False)
    with pytest.raises(ValueError, match="has no scenarios; name their column as roles.scenario"):
        balanced(split)
