from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.histories import History
from rankloom.ranking.transact import TransAct, TransActConfig
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
    "num_heads": 2,
    "layer_hidden": 3,
    "layer_dropout": 0.0,
    "num_latest": 2,
    "hidden": [5],
}


def build(schema: Schema, **settings) -> TransAct:
    model = TransAct(parse_config(TransActConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def normal(x: Tensor, norm: nn.Module) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias


def layer_by_loops(layer: nn.Module, tokens: list[Tensor], seen: list[int]) -> list[Tensor]:
    w_q, w_k, w_v = layer.attend.project.weight.chunk(3)
    heads, width = layer.attend.num_heads, len(tokens[0])
    out = []
    for x in tokens:
        pieces = []
        for head in range(heads):
            units = slice(head * width // heads, (head + 1) * width // heads)
            scores = [(w_q @ x)[units] @ (w_k @ tokens[j])[units] for j in seen]
            shares = torch.stack(scores).div((width // heads) ** 0.5).softmax(0)
            pieces.append(
                sum(a * (w_v @ tokens[j])[units] for a, j in zip(shares, seen, strict=True))
            )
        z = normal(x + layer.out.weight @ torch.cat(pieces), layer.attention_norm)
        hidden = layer.network.expand(z).relu()
        out.append(normal(z + layer.network.reduce(hidden), layer.network_norm))
    return out


def vector_by_loops(unit: nn.Module, events: Tensor, target: Tensor, passed, num: int) -> Tensor:
    """`events` are the real ones of a row, `passed` the seconds since each."""
    tokens = [torch.cat([e, target]) for e in events]
    last = len(tokens) - 1
    seen = [j for j in range(len(tokens)) if passed is None or j == last or passed[j] >= 0]
    for layer in unit.layers:
        tokens = layer_by_loops(layer, tokens, seen) if tokens else []
    zero = target.new_zeros(unit.summary.in_features)
    most = torch.stack(tokens).max(0).values if tokens else zero
    latest = ([zero] * num + tokens)[len(tokens) :]  # the last `num` of both
    return torch.cat([*latest, unit.summary(most)])


@pytest.mark.parametrize("schema", [EVENTS, TIMELESS], ids=["times", "without times"])
@pytest.mark.parametrize("num_latest", [0, 2, 9])
def test_it_equals_the_equations_one_row_and_event_at_a_time(schema, num_latest) -> None:
    model = build(schema, num_latest=num_latest).eval()
    batch = double_batch(schema, 20)
    fields, (history,) = model.input(batch)
    lengths = history.mask.sum(1).tolist()
    assert min(lengths) == 0
    assert max(lengths) == 4
    if history.time is not None:  # some events are later than the request
        assert (history.time > batch.time[:, None])[:, :-1].any()
    rows = []
    for i, mask in enumerate(history.mask):
        passed = None if history.time is None else batch.time[i] - history.time[i][mask]
        vector = vector_by_loops(
            model.histories[0],
            history.events[i][mask],
            history.target[i],
            passed,
            min(num_latest, 4),
        )
        rows.append(torch.cat([fields[i].flatten(), vector]))
    outputs = [model(batch), model.network(torch.stack(rows))]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_training_hides_the_last_seconds_before_a_request() -> None:
    """An event of g seconds ago is hidden by a window up to w with probability 1 - g / w."""
    model = build(EVENTS, time_window_seconds=100)
    window = model.histories[0].visible
    gaps = torch.tensor([[100, 75, 25, 0], [-5, 200, 25, 1]])
    request = torch.tensor([1000, 5000])
    mask = torch.ones(2, 4).bool()
    mask[0, 0] = False
    history = History(
        torch.zeros(2, 4, 6), torch.zeros(2, 4), mask, (request[:, None] - gaps) * mask
    )
    torch.manual_seed(0)
    draws = torch.stack([window(history, request) for _ in range(1000)]).double()
    share = draws.mean(0)
    assert torch.equal(share[:, -1], torch.ones(2, dtype=torch.double))  # the latest event
    assert share[0, 0] == 0  # padding
    assert share[1, :2].tolist() == [0, 1]  # later than the request; longer ago than any window
    assert share[0, 1].item() == pytest.approx(0.75, abs=0.05)
    assert share[0, 2].item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(draws[:, 0, 2], draws[:, 1, 2])  # one window for all rows of a step
    window.eval()
    expected = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]]).bool()
    assert torch.equal(window(history, request), expected)


def test_a_window_of_no_seconds_makes_training_the_same_as_evaluation() -> None:
    model, batch = build(EVENTS, time_window_seconds=0), double_batch(EVENTS, 8)
    torch.testing.assert_close(model.train()(batch), model.eval()(batch))
    hides = build(EVENTS, time_window_seconds=2_000_000_000)
    assert not torch.allclose(hides.train()(batch), hides.eval()(batch))


def test_without_a_history_it_is_a_network_over_fields() -> None:
    model, batch = build(FIELDS), double_batch(FIELDS, 3)
    fields, _ = model.input(batch)
    torch.testing.assert_close(model(batch), model.network(fields.flatten(1)))


def test_crosses_stand_before_the_network() -> None:
    model, batch = build(FIELDS, num_crosses=1), double_batch(FIELDS, 3)
    fields, _ = model.input(batch)
    x = fields.flatten(1)
    crossed = x * model.cross.layers[0](x) + x
    torch.testing.assert_close(model(batch), model.network(crossed))


def test_a_batch_without_the_time_that_the_schema_has_is_refused() -> None:
    batch = replace(double_batch(EVENTS, 2), time=None)
    with pytest.raises(ValueError, match="^events are compared with the row's time, and the batch"):
        build(EVENTS)(batch)


def test_heads_must_divide_an_event_and_the_target() -> None:
    with pytest.raises(ValueError, match="^num_heads must divide dim; got dim=10, num_heads=4$"):
        build(EVENTS, num_heads=4)
