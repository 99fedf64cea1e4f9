from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import ranking_loss
from rankloom.ranking.histories import History, HistoryShape
from rankloom.ranking.sim import SIM, SIMConfig
from rankloom.ranking.sim_search import HardSearch, SoftSearch
from rankloom.schema import NUM_RESERVED, IdMember, Schema

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
EVENTS = example_schema(
    num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=6, rows_per_table=5
)
TIMELESS = EVENTS.model_copy(
    update={
        "sequences": tuple(
            group.model_copy(update={"has_time": False}) for group in EVENTS.sequences
        )
    }
)
SIZES = {
    "embedding_dim": 3,
    "hidden": [5],
    "num_found": 2,
    "short_length": 3,
    "short": {"dim": 4},
    "long": {"dim": 4, "num_heads": 2},
}
HARD = {"search": {"kind": "hard"}}


def build(schema: Schema, **settings) -> SIM:
    torch.manual_seed(0)
    model = SIM(parse_config(SIMConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    if model.input.embedding.table is not None:
        with torch.no_grad():
            model.input.embedding.table.weight[0] = 0
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def found_in(model: SIM, batch: Batch, row: int, history: History) -> tuple[list[int], Tensor]:
    """Places of what the search finds in a row, best first, and all scores."""
    real = [place for place, there in enumerate(history.mask[row].tolist()) if there]
    search = model.search[0]
    if hasattr(search, "member"):
        ids, target = history.ids[row, :, 1].tolist(), int(batch.categorical[row, 1])
        scores = torch.tensor([float(value == target) for value in ids])
        real = [place for place in real if ids[place] == target and target >= NUM_RESERVED]
    else:
        t, keys = history.target[row], history.keys[row]
        if hasattr(search, "of_target"):
            t, keys = search.of_target.weight @ t, keys @ search.of_event.weight.T
        scores = torch.stack([key @ t for key in keys])
    # The same event twice has the same score, but for rounding.
    best = sorted(real, key=lambda place: (-round(scores[place].item(), 9), -place))
    return best[: model.long[0].num_found], scores


def by_rows(model: SIM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits, and logits of the search's own network where it has one."""
    fields, (history,) = model.input(batch)
    rows, pooled = [], []
    for row in range(batch.size):
        target = history.target[row : row + 1]

        def attended(attention: nn.Module, events: list[Tensor], target=target) -> Tensor:
            if not events:
                return torch.zeros(attention.out.out_features, dtype=torch.double)
            x = torch.stack(events).unsqueeze(0)
            return attention(target, x, torch.ones(x.shape[:2]).bool())[0]

        real = history.mask[row].nonzero().flatten().tolist()
        latest = [history.events[row, place] for place in real[-model.short[0].length :]]
        places, scores = found_in(model, batch, row, history)
        found = [history.events[row, place] for place in places]
        if history.time is not None:
            seconds = [int(batch.time[row]) - int(history.time[row, place]) for place in places]
            buckets = [min(32, max(0, gap).bit_length()) for gap in seconds]
            weight = model.long[0].found.gap.weight
            found = [torch.cat([x, weight[b]]) for x, b in zip(found, buckets, strict=True)]
        short = attended(model.short[0].unit.attention, latest)
        long = attended(model.long[0].attention, found)
        rows.append(torch.cat([fields[row].flatten(), short, long]))
        mean = sum(scores[place] * history.events[row, place] for place in range(len(scores)))
        pooled.append(torch.cat([fields[row].flatten(), mean]))
    logits = model.network(torch.stack(rows))
    if model.auxiliary is None:
        return logits, logits
    return logits, model.auxiliary(torch.stack(pooled))


@pytest.mark.parametrize("schema", [TIMELESS, EVENTS], ids=["without times", "times"])
@pytest.mark.parametrize(
    "search",
    [{"kind": "hard"}, {"kind": "soft", "dim": 4}, {"kind": "soft", "dim": 0}],
    ids=["hard", "soft", "shared"],
)
def test_it_equals_the_equations_one_row_at_a_time(schema, search) -> None:
    model, batch = build(schema, search=search), double_batch(schema, 12)
    logits, auxiliary = by_rows(model, batch)
    torch.testing.assert_close(model(batch), logits)
    expected = ranking_loss(logits, batch).total
    if search["kind"] == "soft":
        expected = expected + ranking_loss(auxiliary, batch).total
    losses = [model.loss(batch).total, expected]
    torch.testing.assert_close(*losses)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_the_reference_finds_and_leaves_events() -> None:
    """The test above would show little if the hard search found nothing, or all."""
    model, batch = build(EVENTS, **HARD), double_batch(EVENTS, 40)
    _, (history,) = model.input(batch)
    counts = [len(found_in(model, batch, row, history)[0]) for row in range(40)]
    assert set(counts) == {0, 1, 2}
    assert history.mask.sum(1).amin() == 0


def history_of(ids: list[list[int]], target: list[int]) -> History:
    numbers = torch.tensor([ids]).int()
    return History(
        torch.zeros(1, len(ids), 2),
        torch.zeros(1, 2),
        torch.tensor([[event[0] > 0 for event in ids]]),
        ids=numbers,
        target_ids=torch.tensor([target]).int(),
    )


SHAPE = HistoryShape("clicks", 4, 2, 2, False, ("item", "category", "shop"))


@pytest.mark.parametrize(
    ("category", "target", "expected"),
    [
        (None, [9, 5, 2], [False, True, False, True]),
        ({"clicks": "shop"}, [9, 5, 2], [False, False, True, True]),
        ({}, [9, 5, 2], [False, True, False, True]),
        ("item", [9, 5, 2], [False] * 4),
        (None, [9, 0, 2], [False] * 4),
    ],
)
def test_hard_search_compares_one_member_and_never_padding(category, target, expected) -> None:
    (search,) = HardSearch(category=category).build([SHAPE])
    found = search(history_of([[0, 0, 0], [3, 5, 1], [4, 0, 2], [8, 5, 2]], target))
    assert found.allowed[0].tolist() == expected


def test_soft_search_is_trained_by_its_own_loss_alone() -> None:
    model, batch = build(EVENTS, search={"kind": "soft", "auxiliary_weight": 0.5}), None
    batch = double_batch(EVENTS, 6)
    names = {name for name, _ in model.named_parameters() if name.startswith(("search", "auxi"))}
    assert {"search.0.of_target.weight", "search.0.of_event.weight"} < names
    model(batch).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == names
    loss = model.loss(batch)
    loss.total.backward()
    assert {n for n, p in model.named_parameters() if not p.grad.any()} == set()
    torch.testing.assert_close(loss.total, loss.parts["labels"] + loss.parts["search"])
    doubled = build(EVENTS, search={"kind": "soft", "auxiliary_weight": 1.0})
    doubled.load_state_dict(model.state_dict())
    torch.testing.assert_close(doubled.loss(batch).parts["search"], 2 * loss.parts["search"])


def test_without_the_row_s_time_events_are_compared_with_the_latest() -> None:
    schema = EVENTS.model_copy(update={"has_time": False})
    batch = double_batch(EVENTS, 8)
    events = batch.sequences["history"]
    last = events.time[(events.offsets[1:] - 1).clamp(min=0)]
    model, other = build(EVENTS), build(schema)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(replace(batch, time=None)), model(replace(batch, time=last)))
    with pytest.raises(ValueError, match="row's time, and the batch has none"):
        model(replace(batch, time=None))


def test_an_activation_unit_reads_the_latest_events() -> None:
    settings = {"kind": "activation_unit", "hidden": [4], "activation": "relu"}
    model, batch = build(EVENTS, short=settings), double_batch(EVENTS, 5)
    _, (history,) = model.input(batch)
    short = model.short[0]
    latest = slice(-3, None)
    expected = short.unit.unit(
        history.target, history.keys[:, latest], history.events[:, latest], history.mask[:, latest]
    )
    torch.testing.assert_close(short(history), expected)
    assert short(history).any()


def test_data_without_a_history_is_a_network_over_fields() -> None:
    model, batch = build(FIELDS), double_batch(FIELDS, 4)
    torch.testing.assert_close(model(batch), model.network(model.input(batch)[0].flatten(1)))
    assert model.auxiliary is None
    assert model.loss(batch).total == ranking_loss(model(batch), batch).total


def test_wrong_categories_are_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"^search.category of history clicks must be one of item, category, shop; got brand$",
    ):
        HardSearch(category="brand").build([SHAPE])
    with pytest.raises(ValueError, match=r"^history clicks has no member with one id in an event"):
        HardSearch().build([replace(SHAPE, id_members=())])
    with pytest.raises(ValueError, match=r"names no history: carts; they are clicks$"):
        HardSearch(category={"carts": "shop"}).build([SHAPE])


def test_the_only_member_is_compared_where_there_is_one() -> None:
    (search,) = HardSearch().build([replace(SHAPE, id_members=("item",))])
    assert search.member == 0
    assert len(SoftSearch().build([replace(SHAPE, id_members=())])) == 1


def test_ids_of_a_history_are_those_of_its_single_members() -> None:
    """A member of several ids, or one without a field of the row, is not compared."""
    (group,) = (group for group in EVENTS.sequences if group.ordered)
    several = IdMember(name="tags", table="c0", columns=2)
    wide = group.model_copy(update={"ids": (group.ids[0], several, group.ids[1])})
    others = tuple(one for one in EVENTS.sequences if not one.ordered)
    schema = EVENTS.model_copy(update={"sequences": (*others, wide)})
    model, batch = build(schema), double_batch(schema, 6)
    assert model.input.shapes[0].id_members == ("item", "c0")
    _, (history,) = model.input(batch)
    events = batch.sequences["history"]
    for row in range(6):
        span = events.ids[events.offsets[row] : events.offsets[row + 1]][:, [0, 3]]
        real = history.ids[row][history.mask[row]]
        assert real.tolist() == span.tolist()
        assert not history.ids[row][~history.mask[row]].any()
    assert history.target_ids.tolist() == batch.categorical[:, :2].tolist()
