"""Fields switched off: every kind by hand, and against a loop over rows."""

from typing import cast

import pytest
import torch
from torch import Tensor

from rankloom.batch import Batch, SequenceGroup, clear_rows
from rankloom.data.examples import example_schema, random_batch
from rankloom.data.switch_off import FieldDropout, SwitchOff, switch_off
from rankloom.layers.embedding import FieldEmbedding
from rankloom.schema import CategoricalField, Label, NumericField, Schema

SCHEMA = example_schema(entity=True, num_scenarios=3, num_tasks=2)
KINDS = ("c1", "n0", "embedding", "history", "genres", "item.category", "item.tags")


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def assert_same(left: Batch, right: Batch) -> None:
    for one, other in zip(tensors(left), tensors(right), strict=True):
        assert torch.equal(one, other)


def test_ids_become_padding_and_numbers_zero() -> None:
    schema = Schema(
        tables={"a": 9, "b": 9},
        categorical=(CategoricalField(name="a", table="a"), CategoricalField(name="b", table="b")),
        numeric=(NumericField(name="x"), NumericField(name="y")),
        labels=(Label(name="click"),),
    )
    ids = torch.tensor([[2, 3], [4, 5]], dtype=torch.int32)
    batch = Batch(categorical=ids, numeric=torch.tensor([[0.5, 1.5], [2.5, 3.5]]))
    changed = SwitchOff(schema, ["b", "x"])(batch)
    assert changed.categorical.tolist() == [[2, 0], [4, 0]]
    assert changed.categorical.dtype == torch.int32
    assert changed.numeric.tolist() == [[0.0, 1.5], [0.0, 3.5]]
    assert batch.categorical.tolist() == [[2, 3], [4, 5]]  # the batch itself is kept
    assert batch.numeric.tolist() == [[0.5, 1.5], [2.5, 3.5]]
    some = switch_off(batch, schema, {"a": torch.tensor([True, False])})
    assert some.categorical.tolist() == [[0, 3], [4, 5]]


def test_cleared_rows_by_hand() -> None:
    group = SequenceGroup(
        offsets=torch.tensor([0, 2, 2, 3, 6]),
        ids=torch.tensor([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]),
        time=torch.tensor([1, 2, 3, 4, 5, 6]),
    )
    cleared = clear_rows(group, torch.tensor([False, True, True, False]))
    assert cleared.offsets.tolist() == [0, 2, 2, 2, 5]
    assert cleared.ids[:, 0].tolist() == [1, 2, 4, 5, 6]
    assert cast(Tensor, cleared.time).tolist() == [1, 2, 4, 5, 6]
    nothing = clear_rows(group, torch.ones(4, dtype=torch.bool))
    assert nothing.offsets.tolist() == [0] * 5
    assert nothing.ids.shape == (0, 2)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_against_a_loop_over_rows(name: str) -> None:
    batch = random_batch(SCHEMA, rows=9)
    off = torch.tensor([False, True, True, False, True, False, False, True, False])
    changed = switch_off(batch, SCHEMA, {name: off})
    everywhere = SwitchOff(SCHEMA, [name])(batch)
    for row in range(9):
        # A row on its own is either as it was, or as when the field is switched off in all rows.
        source = everywhere if off[row] else batch
        index = torch.tensor([row])
        assert_same(changed.select(index), source.select(index))
    assert any(not torch.equal(a, b) for a, b in zip(tensors(batch), tensors(changed), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_field_that_is_switched_off_has_a_zero_vector_and_the_others_keep_theirs(
    name: str,
) -> None:
    torch.manual_seed(0)
    embedding = FieldEmbedding(SCHEMA, 4, init_std=1.0)
    batch = random_batch(SCHEMA, rows=9)
    before = embedding(batch)
    after = embedding(SwitchOff(SCHEMA, [name])(batch))
    # A group of several members gives a field for each.
    names = embedding.field_names
    own = torch.tensor([field == name or field.startswith(f"{name}.") for field in names])
    assert own.any()
    assert not after[:, own].any()
    assert before[:, own].any()
    torch.testing.assert_close(after[:, ~own], before[:, ~own], rtol=0, atol=0)


def test_nothing_switched_off_is_the_batch_itself() -> None:
    batch = random_batch(SCHEMA, rows=3)
    assert SwitchOff(SCHEMA, ())(batch) is batch
    assert FieldDropout(SCHEMA, {}, seed=0)(batch, 0, 0) is batch


def test_batches_without_rows() -> None:
    batch = random_batch(SCHEMA, rows=0)
    assert SwitchOff(SCHEMA, KINDS)(batch).size == 0
    assert FieldDropout(SCHEMA, dict.fromkeys(KINDS, 0.5), seed=0)(batch, 0, 1).size == 0


def test_field_dropout_takes_the_share_and_draws_fields_one_by_one() -> None:
    batch = random_batch(SCHEMA, rows=4000)
    shares = {"c1": 0.2, "n0": 0.5, "c2": 1.0, "n1": 0.0}
    changed = FieldDropout(SCHEMA, shares, seed=0)(batch, 0, 1)
    names = [field.name for field in SCHEMA.categorical]
    numeric = [field.name for field in SCHEMA.numeric]
    off = changed.numeric[:, numeric.index("n0")] == 0
    assert abs(float(off.float().mean()) - 0.5) < 0.04  # five deviations
    c1 = names.index("c1")
    known = batch.categorical[:, c1] > 0
    dropped = changed.categorical[:, c1] == 0
    assert abs(float(dropped[known].float().mean()) - 0.2) < 0.035
    assert abs(float(dropped[known & off].float().mean()) - 0.2) < 0.05
    assert not changed.categorical[:, names.index("c2")].any()
    kept = numeric.index("n1")
    assert torch.equal(changed.numeric[:, kept], batch.numeric[:, kept])
    assert torch.equal(changed.categorical[:, 0], batch.categorical[:, 0])


def test_field_dropout_follows_seed_epoch_position_and_rank_alone() -> None:
    batch = random_batch(SCHEMA, rows=200)
    places = [(0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 2, 0), (0, 0, 1, 1)]
    drawn = []
    for seed, *place in places:
        first = FieldDropout(SCHEMA, {"c0": 0.5}, seed)(batch, *place)
        torch.rand(3)  # the global generator has no part in it
        assert_same(FieldDropout(SCHEMA, {"c0": 0.5}, seed)(batch, *place), first)
        drawn.append(tuple(first.categorical.flatten().tolist()))
    assert len(set(drawn)) == len(places)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="no field position to switch off; the fields are item, "):
        SwitchOff(SCHEMA, ["c0", "position"])
    with pytest.raises(ValueError, match="no field position to switch off"):
        FieldDropout(SCHEMA, {"position": 0.1}, seed=0)
    with pytest.raises(ValueError, match="switch each field off once; repeated: c0"):
        SwitchOff(SCHEMA, ["c0", "c0"])
