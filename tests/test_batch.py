import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom.batch import (
    Batch,
    Jagged,
    SequenceGroup,
    concat_batches,
    concat_groups,
    jagged_rows,
    select_group,
)
from rankloom.data.examples import example_schema, random_batch

SCHEMA = example_schema(num_tasks=2, num_scenarios=3, entity=True)


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def assert_same(left: Batch, right: Batch) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert len(ours) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_padding_keeps_the_last_values() -> None:
    jagged = Jagged(torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 2, 2, 6]))
    assert jagged.lengths().tolist() == [2, 0, 4]
    padded, mask = jagged.to_padded(3)
    assert padded.tolist() == [[1, 2, 0], [0, 0, 0], [4, 5, 6]]
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_padding_of_vectors_and_of_nothing() -> None:
    jagged = Jagged(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1, 2]))
    padded, mask = jagged.to_padded(2)
    assert padded.tolist() == [[[1, 2], [0, 0]], [[3, 4], [0, 0]]]
    assert mask.tolist() == [[True, False], [True, False]]
    empty = Jagged(torch.zeros(0, 2), torch.tensor([0, 0, 0]))
    padded, mask = empty.to_padded(3)
    assert padded.shape == (2, 3, 2)
    assert not mask.any()
    none = Jagged(torch.zeros(0), torch.tensor([0])).to_padded(3)
    assert none[0].shape == (0, 3)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    picks=st.lists(st.integers(0, 7), max_size=10),
)
def test_jagged_rows_equals_a_loop(lengths: list[int], picks: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = [pick % len(lengths) for pick in picks]
    index, new_offsets = jagged_rows(offsets, torch.tensor(rows, dtype=torch.int64))
    expected = [list(range(int(offsets[row]), int(offsets[row + 1]))) for row in rows]
    assert index.tolist() == [position for part in expected for position in part]
    assert new_offsets.tolist() == [0, *torch.tensor([len(p) for p in expected]).cumsum(0).tolist()]
    assert index.dtype == new_offsets.dtype == torch.int64


def test_select_equals_row_by_row() -> None:
    batch = random_batch(SCHEMA, 9, seed=2)
    rows = [4, 4, 0, 8, 3]
    chosen = batch.select(torch.tensor(rows))
    assert chosen.size == 5
    history, source = chosen.sequences["history"], batch.sequences["history"]
    for place, row in enumerate(rows):
        assert torch.equal(chosen.categorical[place], batch.categorical[row])
        assert chosen.weight is not None
        assert batch.weight is not None
        assert chosen.weight[place] == batch.weight[row]
        ours = slice(int(history.offsets[place]), int(history.offsets[place + 1]))
        theirs = slice(int(source.offsets[row]), int(source.offsets[row + 1]))
        assert torch.equal(history.ids[ours], source.ids[theirs])
        assert torch.equal(history.vectors["item.text"][ours], source.vectors["item.text"][theirs])
    assert batch.select(torch.tensor([], dtype=torch.int64)).size == 0


def test_concat_puts_rows_after_one_another() -> None:
    batch = random_batch(SCHEMA, 9, seed=2)
    order = torch.arange(9)
    parts = [batch.select(order[:4]), batch.select(order[4:4]), batch.select(order[4:])]
    assert_same(concat_batches(parts), batch)
    assert concat_batches([batch]) is batch
    with pytest.raises(ValueError, match="at least one batch"):
        concat_batches([])


def test_concat_groups_by_hand() -> None:
    left = SequenceGroup(torch.tensor([0, 1, 1]), torch.tensor([[5]]), time=torch.tensor([7]))
    right = SequenceGroup(torch.tensor([0, 2]), torch.tensor([[6], [8]]), time=torch.tensor([1, 2]))
    both = concat_groups([left, right])
    assert both.offsets.tolist() == [0, 1, 1, 3]
    assert both.ids.tolist() == [[5], [6], [8]]
    assert both.time is not None
    assert both.time.tolist() == [7, 1, 2]
    assert both.numeric is None
    assert both.lengths().tolist() == [1, 0, 2]
    chosen = select_group(both, torch.tensor([2, 1]))
    assert chosen.ids.tolist() == [[6], [8]]
    assert chosen.offsets.tolist() == [0, 2, 2]


def test_map_visits_every_tensor_and_keeps_absent_parts() -> None:
    batch = random_batch(SCHEMA, 3)
    assert batch.label_mask is None
    moved = batch.to("cpu")
    assert_same(moved, batch)
    assert moved.label_mask is None
    # categorical, numeric, 3 groups, 2 vectors, labels, weight, scenario, group, time
    groups = 2 + 2 + 5  # offsets and ids; the history has numeric, time and a vector as well
    assert len(tensors(batch)) == 2 + groups + 2 + 5
    doubled = batch.map(lambda tensor: tensor * 2)
    assert torch.equal(doubled.sequences["history"].ids, batch.sequences["history"].ids * 2)


def test_serving_sees_features_scenario_and_time_only() -> None:
    served = random_batch(SCHEMA, 3).without_labels()
    assert served.scenario is not None
    assert served.time is not None
    assert [served.labels, served.label_mask, served.weight, served.group] == [None] * 4


class Pooled(torch.nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        history = batch.sequences["history"]
        vectors = history.vectors["item.text"].sum() + history.ids.float().sum()
        return batch.numeric.sum(1) + vectors + batch.categorical.float().sum(1)


def test_batch_goes_through_compile_and_export() -> None:
    batch = random_batch(SCHEMA, 4)
    model = Pooled()
    expected = model(batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), expected)
    program = torch.export.export(model, (batch,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    # The program carries its example batch; without this, torch would unpickle it unchecked.
    with torch.serialization.safe_globals([Batch, SequenceGroup]):
        loaded = torch.export.load(buffer)
    assert torch.equal(loaded.module()(batch), expected)
