import pytest
import torch

from rankloom.batch import Batch, SequenceGroup
from rankloom.data.assemble import Assembler
from rankloom.data.examples import example_schema, random_batch
from rankloom.schema import CategoricalField, IdMember, Label, NumericField, Schema, SequenceField

ITEM = CategoricalField(name="item", table="item")
BRAND = CategoricalField(name="brand", table="brand", entity="item")
LABELS = (Label(name="y"),)


def entity_rows() -> Batch:
    """Items 0 to 3: brands 0, 0, 7, 8 and prices 0, 0, 1.5, 2.5."""
    return Batch(
        categorical=torch.tensor([[0], [0], [7], [8]], dtype=torch.int32),
        numeric=torch.tensor([[0.0], [0.0], [1.5], [2.5]]),
    )


def schema_with(*members: IdMember, numeric: tuple[NumericField, ...] = ()) -> Schema:
    return Schema(
        tables={"item": 4, "brand": 9, "user": 4},
        categorical=(BRAND, CategoricalField(name="user", table="user"), ITEM),
        numeric=(NumericField(name="age"), NumericField(name="price", entity="item")),
        sequences=(SequenceField(name="history", ids=members, numeric=numeric, max_length=3),),
        labels=LABELS,
    )


def test_entity_columns_by_hand() -> None:
    schema = schema_with(
        IdMember(name="item", table="item"),
        IdMember(name="brand", table="brand", entity="item"),
        IdMember(name="place", table="user"),
        numeric=(NumericField(name="price", entity="item"),),
    )
    stored = Batch(
        categorical=torch.tensor([[1, 3], [2, 0]], dtype=torch.int32),  # user, item
        numeric=torch.tensor([[30.0], [40.0]]),
        sequences={
            "history": SequenceGroup(
                torch.tensor([0, 2, 2]), torch.tensor([[2, 1], [3, 3]], dtype=torch.int32)
            )
        },
        labels=torch.tensor([[float("nan")], [1.0]]),
    )
    assembler = Assembler(schema, {"item": "item"}, {"item": entity_rows()})
    batch = assembler(stored, has_missing_labels=True)
    assert batch.categorical.tolist() == [[8, 1, 3], [0, 2, 0]]
    assert batch.numeric.tolist() == [[30.0, 2.5], [40.0, 0.0]]
    history = batch.sequences["history"]
    assert history.ids.tolist() == [[2, 7, 1], [3, 8, 3]]
    assert history.numeric is not None
    assert history.numeric.tolist() == [[1.5], [2.5]]
    assert batch.labels is not None
    assert batch.label_mask is not None
    assert batch.labels.tolist() == [[0.0], [1.0]]
    assert batch.label_mask.tolist() == [[False], [True]]
    moved = assembler.to("cpu")(stored, has_missing_labels=True)
    assert torch.equal(moved.sequences["history"].ids, history.ids)


def test_events_must_be_of_the_entity() -> None:
    brand = IdMember(name="brand", table="brand", entity="item")
    for first in (IdMember(name="user", table="user"), brand):
        members = (first,) if first is brand else (first, brand)
        with pytest.raises(ValueError, match="the first id must be a stored id of table item"):
            Assembler(schema_with(*members), {"item": "item"}, {"item": entity_rows()})


def test_columns_of_an_entity_must_exist() -> None:
    schema = schema_with(
        IdMember(name="item", table="item"), IdMember(name="colour", table="brand", entity="item")
    )
    with pytest.raises(ValueError, match="entity item has no column colour"):
        Assembler(schema, {"item": "item"}, {"item": entity_rows()})


def test_entity_needs_a_key_and_a_row_per_id() -> None:
    schema = schema_with(IdMember(name="item", table="item"))
    with pytest.raises(ValueError, match="key must be a categorical field of the row; got None"):
        Assembler(schema, {}, {"item": entity_rows()})
    with pytest.raises(ValueError, match="entity item has 3 rows; its key has 4 ids"):
        Assembler(schema, {"item": "item"}, {"item": entity_rows().select(torch.arange(3))})


def test_random_batches_fit_their_schema() -> None:
    schema = example_schema(num_tasks=2, num_scenarios=3, entity=True, rows_per_table=9)
    batch = random_batch(schema, 300, seed=4)
    assert batch.categorical.shape == (300, len(schema.categorical))
    assert batch.numeric.shape == (300, len(schema.numeric))
    assert batch.categorical.min() == 0
    assert batch.categorical.max() == 8
    assert batch.scenario is not None
    assert set(batch.scenario.tolist()) == {0, 1, 2}
    for group in schema.sequences:
        events = batch.sequences[group.name]
        assert events.ids.shape[1] == group.num_id_columns
        lengths = events.lengths()
        assert lengths.min() == 0
        assert lengths.max() == group.max_length
    # Equal items have equal categories, in the row and in the history.
    history = batch.sequences["history"].ids[:, :2].tolist()
    row = batch.categorical[:, :2].tolist()
    categories = {(item, category) for item, category in [*row, *history] if item > 1}
    assert len(categories) == 7
    assert random_batch(schema, 0).size == 0
    assert random_batch(example_schema(sequences=False, vectors=False), 2).sequences == {}
