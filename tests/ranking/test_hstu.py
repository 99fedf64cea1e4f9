import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.hstu import HSTU, HSTUConfig
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
    "embedding_dim": 3,
    "dim": 5,
    "num_heads": 2,
    "head_dim": 3,
    "num_time_buckets": 60,
    "head": {"hidden": [5]},
}


def build(schema: Schema, **settings) -> HSTU:
    model = HSTU(parse_config(HSTUConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def normal(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()


def layer_by_loops(layer: nn.Module, row: Tensor, see: list[list[bool]], time) -> Tensor:
    """The update of all tokens of one row, as the paper writes it."""
    n, heads, width = len(row), layer.num_heads, layer.out.in_features
    u_weight, q_weight = layer.asking.weight.chunk(2)
    k_weight, v_weight = layer.asked.weight.chunk(2)
    u, q, k, v = (
        [functional.silu(weight @ normal(x)) for x in row]
        for weight in (u_weight, q_weight, k_weight, v_weight)
    )
    out = []
    for i in range(n):
        pieces = []
        for head in range(heads):
            units = slice(head * width // heads, (head + 1) * width // heads)
            piece = torch.zeros_like(v[0][units])
            for j in range(n):
                if hasattr(layer.bias, "pair"):
                    bias = layer.bias.pair.weight[i, j]
                else:
                    bias = layer.bias.position.weight[i - j + n - 1]
                if time is not None:
                    gap = abs(int(time[i]) - int(time[j]))
                    bucket = int(math.log(max(1, gap)) / 0.301)
                    bias = bias + layer.bias.gap.weight[min(bucket, 59), 0]
                if see[i][j]:
                    piece = (
                        piece + functional.silu(q[i][units] @ k[j][units] + bias) / n * v[j][units]
                    )
            pieces.append(piece)
        gated = u[i] * normal(torch.cat(pieces))
        out.append(layer.out.weight @ gated + layer.out.bias)
    return torch.stack(out)


@pytest.mark.parametrize(
    "schema", [FIELDS, TIMELESS, EVENTS], ids=["fields", "events without times", "events"]
)
def test_it_equals_the_equations_one_row_and_pair_at_a_time(schema) -> None:
    model, batch = build(schema), double_batch(schema, 4)
    tokens = model.tokens(batch)
    n = tokens.x.shape[1]
    rows = []
    for number, x in enumerate(tokens.x):
        real = [True] * n if tokens.mask is None else tokens.mask[number].tolist()
        causal = tokens.num_events > 0
        see = [[real[j] and (j <= i or not causal) for j in range(n)] for i in range(n)]
        time = None if tokens.time is None else tokens.time[number]
        for (layer,) in (unit.sublayers for unit in model.stack.layers):
            x = x + layer_by_loops(layer, x, see, time)
        rows.append(model.stack.norm(x[tokens.num_events :]))
    assert model.tokens.has_time == (schema is EVENTS)
    assert tokens.num_events == (0 if schema is FIELDS else 4)
    outputs = [model(batch), model.head(torch.stack(rows))]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_how_often_something_happened_counts() -> None:
    """Without a softmax, twice the same event is twice its share."""
    model = build(TIMELESS, num_layers=1)
    layer = model.stack.layers[0].sublayers[0]
    n = model.tokens.num_events + model.tokens.num_fields
    nn.init.zeros_(layer.bias.position.weight)
    layer.attended_norm = nn.Identity()
    x = torch.randn(n, 5, dtype=torch.double)
    x[1] = x[0]
    once, twice = torch.zeros(2, n, n, dtype=torch.double)
    once[-1, 0] = 1 / n
    twice[-1, :2] = 1 / n

    def update(visible: Tensor) -> Tensor:
        return layer(x[None], visible, None)[0, -1] - layer.out.bias

    torch.testing.assert_close(update(twice), 2 * update(once))
    assert update(once).abs().min() > 0


def test_a_token_of_the_paper_s_size_has_its_parameters() -> None:
    """4 dim heads head_dim, then heads head_dim dim + dim, 2 n - 1 distances, the gaps' buckets."""
    model = build(EVENTS, dim=50, head_dim=25, num_time_buckets=128)
    n = model.tokens.num_events + model.tokens.num_fields
    count = sum(p.numel() for p in model.stack.layers[0].parameters())
    assert count == 4 * 50 * 50 + 50 * 50 + 50 + (2 * n - 1) + 128
    start = HSTU(parse_config(HSTUConfig, {"dim": 64}, "test"), EVENTS).stack.layers[0].sublayers[0]
    assert start.asking.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert start.asked.weight.std().item() == pytest.approx(0.02, rel=0.05)
