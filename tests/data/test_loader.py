from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom.batch import Batch
from rankloom.data import loader as loader_module
from rankloom.data import order as order_module
from rankloom.data.assemble import Assembler
from rankloom.data.columns import Columns
from rankloom.data.examples import example_dataset, example_schema, random_columns
from rankloom.data.loader import Loader
from rankloom.data.shards import to_stored_batch
from rankloom.data.store import StoredSplit
from rankloom.schema import CategoricalField, Label, Schema

SCHEMA = Schema(
    tables={"row": 10_000},
    categorical=(CategoricalField(name="row", table="row"),),
    labels=(Label(name="y"),),
)


def numbered_split(rows: int, rows_per_shard: int = 17) -> StoredSplit:
    """A split in memory whose only id is the number of the row."""
    shards = [
        to_stored_batch(
            Columns(
                categorical=np.arange(start, min(start + rows_per_shard, rows), dtype=np.int32)[
                    :, None
                ],
                numeric=np.zeros((min(rows_per_shard, rows - start), 0), np.float32),
                labels=np.zeros((min(rows_per_shard, rows - start), 1), np.float32),
            )
        )
        for start in range(0, max(rows, 1), rows_per_shard)
    ]
    assembler = Assembler(SCHEMA, {}, {})
    return StoredSplit("train", shards, rows_per_shard, assembler, has_missing_labels=False)


def numbers(loader: Loader) -> list[list[int]]:
    return [batch.categorical[:, 0].tolist() for batch in loader]


def joined(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks small enough that tests have several windows."""
    init = order_module.BlockShuffle.__init__
    monkeypatch.setattr(init, "__defaults__", (4, 3))


def test_evaluation_keeps_order_and_every_row() -> None:
    loader = Loader(numbered_split(45), 10)
    assert loader.order == "stored"
    assert numbers(loader) == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 30)),
        list(range(30, 40)),
        list(range(40, 45)),
    ]


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 10, 11, 12, 21])
def test_evaluation_of_any_number_of_rows(rows: int) -> None:
    loader = Loader(numbered_split(rows), 10)
    batches = numbers(loader)
    assert joined(batches) == list(range(rows))
    assert len(batches) == len(loader)
    assert rows == 1 or all(len(batch) != 1 for batch in batches)


def test_last_single_row_joins_the_batch_before() -> None:
    assert [len(b) for b in numbers(Loader(numbered_split(21), 10))] == [10, 11]
    kept = Loader(numbered_split(21), 10, drop_single=False)
    assert [len(b) for b in numbers(kept)] == [10, 10, 1]


@pytest.mark.parametrize("order", ["full", "block"])
def test_every_row_once_in_random_order(order: str) -> None:
    loader = Loader(numbered_split(103), 10, shuffle=True, order=order)  # type: ignore[arg-type]
    assert loader.order == order
    rows = joined(numbers(loader))
    assert sorted(rows) == list(range(103))
    assert rows != sorted(rows)


def test_seed_and_epoch_decide_the_order_alone() -> None:
    for order in ("full", "block"):
        first = Loader(numbered_split(103), 10, shuffle=True, seed=3, order=order)  # type: ignore[arg-type]
        again = Loader(numbered_split(103, 50), 10, shuffle=True, seed=3, order=order)  # type: ignore[arg-type]
        sevens = Loader(numbered_split(103), 7, shuffle=True, seed=3, order=order)  # type: ignore[arg-type]
        other = Loader(numbered_split(103), 10, shuffle=True, seed=4, order=order)  # type: ignore[arg-type]
        rows = joined(numbers(first))
        assert joined(numbers(again)) == rows  # whatever the shards
        # Other batch sizes cut the same sequence of rows, and sort what they cut.
        assert set(joined(numbers(sevens))[:70]) == set(rows[:70])
        assert all(batch == sorted(batch) for batch in numbers(first))
        assert joined(numbers(first)) == rows  # the same epoch once more
        assert joined(numbers(other)) != rows
        first.set_epoch(1)
        assert joined(numbers(first)) != rows
        first.set_epoch(0)
        assert joined(numbers(first)) == rows


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    joined(numbers(Loader(numbered_split(50), 10, shuffle=True)))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_do_not_change_batches(tmp_path: Path) -> None:
    schema = example_schema(entity=True, num_scenarios=3)
    columns = random_columns(schema, 200, np.random.default_rng(0), missing_labels=0.1)
    split = example_dataset(tmp_path, schema, {"train": columns}, rows_per_shard=64).split("train")
    threads = torch.get_num_threads()
    seen = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            seen.append([tensors(batch) for batch in Loader(split, 33, shuffle=True)])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 90),
    batch_size=st.integers(2, 20),
    world_size=st.integers(1, 5),
    order=st.sampled_from(["stored", "full", "block"]),
    drop_single=st.booleans(),
)
def test_ranks_are_disjoint_cover_all_and_keep_step(
    rows: int, batch_size: int, world_size: int, order: str, drop_single: bool
) -> None:
    split = numbered_split(rows)
    shuffle = order != "stored"
    if shuffle and rows < 2 * world_size:
        drop_single = False
    if shuffle and rows < world_size:
        return
    loaders = [
        Loader(
            split,
            batch_size,
            shuffle=shuffle,
            order=order if shuffle else "auto",  # type: ignore[arg-type]
            rank=rank,
            world_size=world_size,
            drop_single=drop_single,
        )
        for rank in range(world_size)
    ]
    batches = [numbers(loader) for loader in loaders]
    assert sorted(joined([row for rank in batches for row in rank])) == list(range(rows))
    if rows >= world_size:
        assert len({len(rank) for rank in batches}) == 1
    assert [len(rank) for rank in batches] == [len(loader) for loader in loaders]
    assert all(len(batch) > 0 for rank in batches for batch in rank)
    if drop_single and shuffle:
        assert all(len(batch) > 1 for rank in batches for batch in rank)
    if not shuffle:
        assert joined([row for rank in batches for row in rank]) == list(range(rows))
    if shuffle:
        single = Loader(
            split,
            batch_size * world_size,
            shuffle=True,
            order=order,  # type: ignore[arg-type]
            drop_single=False,
        )
        first = sorted(joined([rank[0] for rank in batches]))
        if len(loaders[0]) > 1:
            assert first == sorted(numbers(single)[0])


@pytest.mark.parametrize("order", ["full", "block", "stored"])
@pytest.mark.parametrize("stop", [0, 1, 5, 10, 11])
def test_resume_continues_exactly(order: str, stop: int) -> None:
    def make() -> Loader:
        shuffle = order != "stored"
        chosen = order if shuffle else "auto"
        return Loader(numbered_split(105), 10, shuffle=shuffle, seed=5, order=chosen)  # type: ignore[arg-type]

    unbroken = make()
    unbroken.set_epoch(2)
    expected = numbers(unbroken)
    assert len(expected) == 11

    broken = make()
    broken.set_epoch(2)
    batches = iter(broken)
    seen = [next(batches).categorical[:, 0].tolist() for _ in range(stop)]
    state = broken.state()
    assert (state["epoch"], state["position"]) == (2, stop)
    resumed = make()
    resumed.restore(state)
    assert resumed.state() == state
    resumed.set_epoch(2)  # as a loop that runs over epochs does
    assert seen + numbers(resumed) == expected
    assert resumed.state()["position"] == 11
    # Only the first pass is short.
    assert numbers(resumed) == expected
    resumed.restore(state)
    resumed.set_epoch(3)
    assert len(numbers(resumed)) == 11


def test_state_of_another_loader_is_refused() -> None:
    split = numbered_split(105)
    state = Loader(split, 10, shuffle=True, seed=5).state()
    with pytest.raises(ValueError, match="seed 5, here 6"):
        Loader(split, 10, shuffle=True, seed=6).restore(state)
    with pytest.raises(ValueError, match=r"batch_size 10, here 20; num_batches 11, here 6"):
        Loader(split, 20, shuffle=True, seed=5).restore(state)
    with pytest.raises(ValueError, match="order 1, here 2"):
        Loader(split, 10, shuffle=True, seed=5, order="block").restore(state)
    with pytest.raises(ValueError, match="position must be 0 to 11; got 12"):
        Loader(split, 10, shuffle=True, seed=5).restore(state | {"position": 12})


def test_auto_takes_over_the_order_of_the_state() -> None:
    split = numbered_split(105)
    block = Loader(split, 10, shuffle=True, order="block")
    auto = Loader(split, 10, shuffle=True)
    assert auto.order == "full"
    auto.restore(block.state())
    assert auto.order == "block"
    assert numbers(auto) == numbers(block)


def test_auto_shuffles_blocks_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    split = numbered_split(105)
    monkeypatch.setattr(loader_module, "_machine_memory_bytes", lambda: split.memory_bytes())
    assert Loader(split, 10, shuffle=True).order == "block"
    monkeypatch.setattr(loader_module, "_machine_memory_bytes", lambda: 2 * split.memory_bytes())
    assert Loader(split, 10, shuffle=True).order == "full"
    monkeypatch.setattr(loader_module, "MAX_PERMUTATION_BYTES", 104 * 8)
    assert Loader(split, 10, shuffle=True).order == "block"


def test_nonsense_is_refused() -> None:
    split = numbered_split(5)
    with pytest.raises(ValueError, match="batch_size must be positive; got 0"):
        Loader(split, 0)
    with pytest.raises(ValueError, match="rank must be at least 0 and below world_size; got 2, 2"):
        Loader(split, 4, rank=2, world_size=2)
    with pytest.raises(ValueError, match="order must be auto, full or block; got 'random'"):
        Loader(split, 4, order="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 rows: got batch_size=4, 5 rows for 3 ranks"):
        Loader(split, 4, shuffle=True, rank=0, world_size=3)
    with pytest.raises(ValueError, match="at least 2 rows: got batch_size=1"):
        Loader(split, 1, shuffle=True)
    with pytest.raises(ValueError, match="seed must not be negative; got -1"):
        Loader(split, 4, seed=-1)
    with pytest.raises(ValueError, match="epoch must not be negative; got -2"):
        Loader(split, 4).set_epoch(-2)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_cuda_equal_those_on_cpu(
    tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = example_schema(entity=True, num_scenarios=3)
    columns = random_columns(schema, 200, np.random.default_rng(0), missing_labels=0.1)
    split = example_dataset(tmp_path, schema, {"train": columns}, rows_per_shard=64).split("train")
    monkeypatch.setattr(loader_module, "_fits_device", lambda *_: resident)
    moved = Loader(split, 33, shuffle=True, device="cuda")
    assert moved.resident is resident
    for ours, theirs in zip(Loader(split, 33, shuffle=True), moved, strict=True):
        for one, other in zip(tensors(ours), tensors(theirs), strict=True):
            assert other.device.type == "cuda"
            assert torch.equal(one, other.cpu())
