import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.bst import BST, BSTConfig
from rankloom.schema import Schema

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
EVENTS = example_schema(num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=4)
TIMELESS = EVENTS.model_copy(
    update={
        "sequences": tuple(
            group.model_copy(update={"has_time": False}) for group in EVENTS.sequences
        )
    }
)
SIZES = {
    "embedding_dim": 2,
    "position_dim": 2,
    "num_layers": 2,
    "num_heads": 2,
    "expansion": 2,
    "hidden": [5],
}
TIME = {"positions": {"kind": "time_since"}}


def build(schema: Schema, **settings) -> BST:
    model = BST(parse_config(BSTConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def normal(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias


def attended(layer: nn.Module, tokens: list[Tensor], query: Tensor) -> Tensor:
    w_q, w_k, w_v = layer.attend.project.weight.chunk(3)
    heads, width = layer.attend.num_heads, len(query)
    pieces = []
    for head in range(heads):
        units = slice(head * width // heads, (head + 1) * width // heads)
        scores = [(w_q @ query)[units] @ (w_k @ key)[units] for key in tokens]
        shares = torch.stack(scores).div((width // heads) ** 0.5).softmax(0)
        pieces.append(
            sum(share * (w_v @ key)[units] for share, key in zip(shares, tokens, strict=True))
        )
    return torch.cat(pieces)


def layer_by_loops(layer: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    out = []
    for x in tokens:
        z = normal(x + layer.out.weight @ attended(layer, tokens, x), layer.attention_norm)
        hidden = functional.leaky_relu(layer.network.expand(z))
        out.append(normal(z + layer.network.reduce(hidden), layer.network_norm))
    return out


def position(unit: nn.Module, from_end: int, seconds: int) -> Tensor:
    """`from_end` is 0 for the target, 1 for the latest event."""
    if hasattr(unit.positions, "weight"):
        return unit.positions.weight[-1 - from_end]
    bucket = 0 if seconds <= 0 else 1 + int(math.log2(seconds))
    return unit.positions.recency.weight[bucket]


def row_by_loops(unit: nn.Module, events: Tensor, target: Tensor, time, row_time) -> list[Tensor]:
    """All tokens of one row after the last layer; `events` are the real ones."""
    n = len(events)
    wide = torch.cat([target, target.new_zeros(events.shape[1] - len(target))])
    tokens = []
    for j, x in enumerate([*events, wide]):
        seconds = int(row_time) - int(time[j]) if j < n and time is not None else 0
        tokens.append(torch.cat([x, position(unit, n - j, seconds)]))
    for layer in unit.layers:
        tokens = layer_by_loops(layer, tokens)
    return tokens


def pooled(kind: str, tokens: list[Tensor], length: int) -> Tensor:
    if kind == "mean":
        return torch.stack(tokens).mean(0)
    if kind == "target":
        return tokens[-1]
    padding = [torch.zeros_like(tokens[0])] * (length + 1 - len(tokens))
    return torch.cat([*padding, *tokens])


@pytest.mark.parametrize(
    ("schema", "settings"),
    [
        (EVENTS, {}),
        (EVENTS, TIME | {"pooling": {"kind": "target"}, "layer_norm": False}),
        (TIMELESS, {"pooling": {"kind": "concat"}}),
    ],
    ids=["places, mean", "time since, target, no norms", "concat"],
)
def test_it_equals_the_equations_one_row_and_token_at_a_time(schema, settings) -> None:
    model, batch = build(schema, **settings), double_batch(schema, 6)
    kind = settings.get("pooling", {"kind": "mean"})["kind"]
    fields, (history,) = model.input(batch)
    lengths = history.mask.sum(1).tolist()
    assert min(lengths) == 0
    assert max(lengths) > 1
    assert history.events.shape[2] > history.target.shape[1]  # the target has no price paid
    rows = []
    for i, mask in enumerate(history.mask):
        time = None if history.time is None else history.time[i][mask]
        tokens = row_by_loops(
            model.histories[0], history.events[i][mask], history.target[i], time, batch.time[i]
        )
        rows.append(torch.cat([fields[i].flatten(), pooled(kind, tokens, history.mask.shape[1])]))
    outputs = [model(batch), model.network(torch.stack(rows))]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_without_a_history_it_is_a_network_over_fields() -> None:
    model, batch = build(FIELDS), double_batch(FIELDS, 3)
    fields, histories = model.input(batch)
    assert histories == []
    torch.testing.assert_close(model(batch), model.network(fields.flatten(1)))


def test_the_order_of_events_counts_through_their_places() -> None:
    """Attention and the mean know no order of their own."""
    model, batch = build(EVENTS), double_batch(EVENTS, 20)
    _, (history,) = model.input(batch)
    unit = model.histories[0]
    full = int(history.mask.all(1).nonzero()[0])
    before = unit(history, batch.time)[full]
    events = history.events.flip(1)
    moved = type(history)(events, history.target, history.mask, history.time)
    assert not torch.allclose(unit(moved, batch.time)[full], before)
    nn.init.zeros_(unit.positions.weight)
    torch.testing.assert_close(unit(moved, batch.time)[full], unit(history, batch.time)[full])


def test_time_since_needs_times() -> None:
    message = (
        r'^positions.kind = "time_since" needs the time of every event and a time role in the '
    )
    with pytest.raises(ValueError, match=message):
        build(TIMELESS, **TIME)
    with pytest.raises(ValueError, match=message):
        build(EVENTS.model_copy(update={"has_time": False}), **TIME)
    batch = double_batch(EVENTS, 2)
    batch = Batch(batch.categorical, batch.numeric, batch.sequences)
    with pytest.raises(ValueError, match="compares events with the row's time; the batch has none"):
        build(EVENTS, **TIME)(batch)


def test_heads_must_divide_an_event_with_its_position() -> None:
    with pytest.raises(ValueError, match="^num_heads must divide dim; got dim=8, num_heads=3$"):
        build(EVENTS, num_heads=3)
