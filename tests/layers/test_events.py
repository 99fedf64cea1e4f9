from dataclasses import replace

import pytest
import torch
from event_batches import BATCH, CARTS, CLICKS, SCHEMA, draw, looked_up, positions_of
from torch import Tensor, nn

from rankloom.batch import Batch, SequenceGroup
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.events import EventEmbedding, PaddedEvents, latest_events
from rankloom.schema import IdMember, Label, Schema, SequenceField


class Events(nn.Module):
    """One group's events beside the fields whose table they share."""

    def __init__(self, dim: int = 4, max_length: int | None = None) -> None:
        super().__init__()
        self.fields = FieldEmbedding(SCHEMA, dim, fields=["user"], tables={"item", "tag"})
        self.events = EventEmbedding(CLICKS, self.fields, max_length=max_length)

    def forward(self, batch: Batch) -> PaddedEvents:
        assert self.fields.table is not None
        return self.events(batch.sequences["clicks"], self.fields.table)


def reference(model: Events, batch: Batch) -> Tensor:
    """Members of every event of every row, by loops."""
    events, parts, length = batch.sequences["clicks"], model.events, model.events.length
    assert events.numeric is not None
    assert parts.numeric is not None
    rows = []
    for row in range(batch.size):
        found = []
        for place in positions_of(batch, CLICKS, row)[-length:]:
            item, *tags = events.ids[place].tolist()
            named = [looked_up(model.fields, "tag", tag) for tag in tags if tag != 0]
            mean = sum(named, torch.zeros(4)) / max(len(named), 1)
            numbers = [events.numeric[place, i] * parts.numeric[i] for i in range(2)]
            image = parts.projections[0].weight @ events.vectors["image"][place]
            found.append(
                torch.stack([looked_up(model.fields, "item", item), mean, *numbers, image])
            )
        missing = torch.zeros(length - len(found), 5, 4)
        rows.append(torch.cat([missing, torch.stack(found)]) if found else missing)
    return torch.stack(rows)


@pytest.mark.parametrize("max_length", [None, 2, 1, 99])
def test_events_equal_the_loops_forward_and_gradient(max_length: int | None) -> None:
    model = Events(max_length=max_length)
    draw(model)
    assert model.events.length == min(max_length or 5, 5)
    weights = torch.randn(4, model.events.length, 5, 4)
    results = []
    for compute in (lambda: model(BATCH).x, lambda: reference(model, BATCH)):
        model.zero_grad()
        out = compute()
        (out * weights).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_mask_and_time_worked_by_hand() -> None:
    padded = Events()(BATCH)
    assert padded.mask.int().tolist() == [
        [0, 0, 1, 1, 1],  # four events, one of them padding
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1],
    ]
    assert padded.time is not None
    assert padded.time[0].tolist() == [0, 0, 700, 900, 990]
    assert padded.time[3].tolist() == [1003, 900, 2000, 1002, 1]
    latest = Events(max_length=2)(BATCH)
    assert latest.time is not None
    assert latest.time.tolist() == [[900, 990], [0, 0], [0, 0], [1002, 1]]


def test_names_and_width() -> None:
    events = Events().events
    assert events.member_names == ("item", "tag", "price", "seen", "image")
    assert events.width == 5 * 4


def test_padding_events_move_nothing() -> None:
    """Not even where they would push older events out."""
    ids = torch.tensor([[3], [0], [4], [0], [0], [5], [0], [2]]).int()
    given = SequenceGroup(offsets=torch.tensor([0, 5, 5, 8]), ids=ids)
    kept = SequenceGroup(offsets=torch.tensor([0, 2, 2, 4]), ids=ids[ids[:, 0] != 0])
    for length in (1, 2, 3):
        (index, mask), (fewer, same) = latest_events(given, length), latest_events(kept, length)
        assert torch.equal(mask, same)
        assert torch.equal(ids[index - 1][mask], kept.ids[fewer - 1][mask])
        assert not index[~mask].any()


@pytest.mark.parametrize("rows", [0, 3])
def test_no_events_and_no_rows(rows: int) -> None:
    model = Events()
    draw(model)
    empty = SequenceGroup(
        offsets=torch.zeros(rows + 1, dtype=torch.int64),
        ids=torch.empty(0, 3).int(),
        numeric=torch.empty(0, 2),
        time=torch.empty(0, dtype=torch.int64),
        vectors={"image": torch.empty(0, 3)},
    )
    batch = Batch(torch.ones(rows, 2).int(), torch.ones(rows, 1), {"clicks": empty})
    padded = model(batch)
    assert padded.x.shape == (rows, 5, 5, 4)
    assert not padded.x.any()
    assert not padded.mask.any()


def test_candidate_and_event_are_the_same_vector() -> None:
    fields = FieldEmbedding(SCHEMA, 3, fields=["item"], tables={"item"})
    carts = EventEmbedding(CARTS, fields)
    draw(fields)
    assert fields.table is not None
    assert fields.table.weight.shape[0] == 6
    events = carts(BATCH.sequences["carts"], fields.table).x
    # Row 3 shows item 5, which row 0 has put into its cart last.
    assert torch.equal(fields(BATCH)[3, 0], events[0, -1, 0])


def test_row_gradients_equal_dense_gradients_and_are_one_gather() -> None:
    model = Events()
    draw(model)
    table = model.fields.table
    assert table is not None
    weights = torch.randn(4, 5, 5, 4)
    (model(BATCH).x * weights).sum().backward()
    expected = table.weight.grad
    assert expected is not None
    assert expected.abs().max() > 0
    table.weight.grad = None
    table.row_gradients = True
    (model(BATCH).x * weights).sum().backward()
    (entry,) = table.pending
    actual = torch.zeros_like(table.weight).index_add(0, entry.rows, entry.expanded())
    actual[0] = 0
    torch.testing.assert_close(actual, expected)


def test_ids_beyond_int32_do_not_wrap() -> None:
    fields = FieldEmbedding(SCHEMA, 2, fields=["user"], tables={"item"})
    small = EventEmbedding(CARTS, fields)
    assert small._bases.dtype == torch.int32
    fields.table = nn.Module()  # type: ignore[assignment]
    fields.table.weight = torch.empty(2**31, 2, device="meta")  # type: ignore[union-attr]
    assert EventEmbedding(CARTS, fields)._bases.dtype == torch.int64


def test_a_group_without_time_has_none() -> None:
    clicks = replace(BATCH.sequences["clicks"], time=None)
    assert Events()(replace(BATCH, sequences={"clicks": clicks})).time is None


def test_a_summed_member_worked_by_hand() -> None:
    prefixes = IdMember(name="sid", table="sid", columns=2, pooling="sum")
    tags = IdMember(name="tag", table="sid", columns=2)
    group = SequenceField(name="past", ids=(prefixes, tags), max_length=3)
    schema = Schema(tables={"sid": 5}, sequences=(group,), labels=(Label(name="click"),))
    fields = FieldEmbedding(schema, 1)
    events = EventEmbedding(group, fields)
    assert fields.table is not None
    with torch.no_grad():
        fields.table.weight[:, 0] = torch.tensor([0.0, 1.0, 10.0, 100.0, 1000.0])
    ids = torch.tensor([[2, 3, 2, 3], [0, 0, 0, 0], [4, 0, 4, 0]]).int()
    given = SequenceGroup(offsets=torch.tensor([0, 3]), ids=ids)
    padded = events(given, fields.table)
    assert padded.mask.tolist() == [[False, True, True]]
    # [batch, length, members, dim]: the sum beside the mean.
    assert padded.x[0, :, :, 0].tolist() == [[0, 0], [110, 55], [1000, 1000]]
