import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dhen import DHEN, DHENConfig

SCHEMA = example_schema(num_categorical=1, num_numeric=1, sequences=False, vectors=False)
"""Three fields."""
SIZES = {"embedding_dim": 2, "dim": 4, "head": {"hidden": [5]}}
DOT = {"kind": "dot", "network": {"hidden": [6], "activation": "tanh"}}
ATTENTION = {"kind": "attention", "num_heads": 2, "expansion": 2}
ALL = [{"kind": "linear"}, {"kind": "cross"}, DOT, ATTENTION]


def build(schema=SCHEMA, **settings) -> DHEN:
    model = DHEN(parse_config(DHENConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(rows: int, schema=SCHEMA) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def weighted(weight: Tensor, tokens: list[Tensor]) -> list[Tensor]:
    return [sum(w * x for w, x in zip(row, tokens, strict=True)) for row in weight]


def linear_by_loops(part: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    return weighted(part.weight, tokens)


def cross_by_loops(part: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    """The product of all pairs of dimensions, built; then W of it, and b."""
    products = sum(torch.outer(x, x) for x in tokens)  # [dim, dim]
    return [
        weight @ products + bias for weight, bias in zip(part.weigh.weight, part.bias, strict=True)
    ]


def dot_by_loops(part: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    pairs = [x @ y for i, x in enumerate(tokens) for y in tokens[i + 1 :]]
    products = torch.stack(pairs + [x @ x for x in tokens])
    return list(part.network(products).split(len(tokens[0])))


def attention_by_loops(part: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    encoder, project = part
    attend, out = encoder.layers[0]
    network = encoder.layers[1]
    q, k, v = ([(w @ x).chunk(2) for x in tokens] for w in attend.project.weight.chunk(3))
    attended = []
    for query in q:
        heads = []
        for head in range(2):
            scores = torch.stack([query[head] @ key[head] for key in k])
            shares = torch.softmax(scores / 2**0.5, 0)
            heads.append(sum(a * value[head] for a, value in zip(shares, v, strict=True)))
        attended.append(out.weight @ torch.cat(heads))
    first, second = encoder.connection.norms
    z = [first(x + o) for x, o in zip(tokens, attended, strict=True)]
    encoded = []
    for x in z:
        hidden = functional.gelu(network.expand.weight @ x + network.expand.bias)
        encoded.append(second(x + network.reduce.weight @ hidden + network.reduce.bias))
    return weighted(project.weight, encoded)


BY_LOOPS = [linear_by_loops, cross_by_loops, dot_by_loops, attention_by_loops]


def ensemble_by_loops(part: nn.Module, outputs: list[list[Tensor]]) -> list[Tensor]:
    if hasattr(part, "project"):
        return weighted(part.project.weight, [token for tokens in outputs for token in tokens])
    scales = part.weight if hasattr(part, "weight") else torch.ones(len(outputs))
    return [
        sum(scale * token for scale, token in zip(scales, tokens, strict=True))
        for tokens in zip(*outputs, strict=True)
    ]


def interactions_by_loops(layer: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    parts = zip(BY_LOOPS, layer.interactions, strict=True)
    return ensemble_by_loops(layer.ensemble, [by_loops(part, tokens) for by_loops, part in parts])


def assert_same_with_gradients(actual: Tensor, expected: Tensor, parameters) -> None:
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(actual)
    gradients = [
        torch.autograd.grad((out * weights).sum(), parameters) for out in (actual, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["sum", "weighted_sum", "concat"])
@pytest.mark.parametrize("layer_tokens", [None, 2], ids=["same tokens", "two tokens"])
def test_it_equals_the_paper_one_row_and_token_at_a_time(kind, layer_tokens) -> None:
    settings = {"interactions": ALL, "ensemble": {"kind": kind}}
    model = build(**settings | ({"layer_tokens": 2} if layer_tokens else {}))
    batch = double_batch(3)
    rows = []
    for row in model.tokens(batch).x:
        tokens = list(row)
        if layer_tokens:
            resize = model.resize
            updates = interactions_by_loops(resize.ensemble, tokens)
            shortcut = weighted(resize.shortcut.weight, tokens)
            tokens = [resize.norm(x + u) for x, u in zip(shortcut, updates, strict=True)]
        for layer, norm in zip(model.stack.layers, model.stack.connection.norms, strict=True):
            updates = interactions_by_loops(layer.ensemble, tokens)
            tokens = [norm(x + u) for x, u in zip(tokens, updates, strict=True)]
        rows.append(model.head[1](torch.cat(tokens)))
    assert len(model.stack.layers) == (1 if layer_tokens else 2)
    assert_same_with_gradients(model(batch), torch.stack(rows), list(model.parameters()))


def interaction(settings, dim: int) -> nn.Module:
    model = build(interactions=[settings], dim=dim, num_layers=1)
    return model.stack.layers[0].ensemble.interactions[0]


def test_the_cross_by_hand() -> None:
    """Two weights (1, 0) and (0, 1): sums of tokens times their first, and their second, number."""
    cross = interaction({"kind": "cross"}, dim=2)
    with torch.no_grad():
        cross.weigh.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        cross.bias.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[[10.5, -1.0], [-1.0, 5.0], [9.0, 5.0]]], dtype=torch.float64)
    torch.testing.assert_close(cross(x), expected)


def test_default_layers_sum_a_cross_and_a_linear_interaction() -> None:
    model = build()
    layer = model.stack.layers[0].ensemble
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    cross, linear = layer.interactions
    torch.testing.assert_close(layer(x), cross(x) + linear(x))
    assert cross.bias.shape == (3, 4)
    assert linear.weight.shape == (3, 3)


def test_a_weighted_sum_starts_as_the_sum() -> None:
    config = parse_config(DHENConfig, SIZES | {"ensemble": {"kind": "weighted_sum"}}, "test")
    layer = DHEN(config, SCHEMA).stack.layers[0].ensemble
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), sum(part(x) for part in layer.interactions))


def test_one_layer_of_another_number_of_tokens_needs_no_connection() -> None:
    model, batch = build(num_layers=1, layer_tokens=5), double_batch(3)
    tokens = model.resize(model.tokens(batch).x)
    assert tokens.shape == (3, 5, 4)
    torch.testing.assert_close(model(batch), model.head(tokens))


def test_pre_norm_connections_normalise_inside() -> None:
    model = build(connection={"kind": "identity"}, num_layers=1)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    layer = model.stack.layers[0].sublayers[0]
    expected = model.stack.norm(x + layer.ensemble(layer.norm(x)))
    torch.testing.assert_close(model.stack(x), expected)


def test_one_field_meets_itself() -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    model = build(schema, interactions=ALL)
    assert model.tokens.num_fields == 1
    assert model(double_batch(3, schema)).shape == (3, 1)


def test_there_is_at_least_one_interaction() -> None:
    with pytest.raises(ValueError, match=r"interactions: Tuple should have at least 1 item"):
        build(interactions=[])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads must divide dim; got dim=4, num_heads=3"):
        build(interactions=[{"kind": "attention", "num_heads": 3}])


def test_a_connection_needs_a_layer_that_keeps_the_tokens() -> None:
    config = DHENConfig.model_validate(
        {"num_layers": 1, "layer_tokens": 3, "connection": {"kind": "deres"}}
    )
    with pytest.raises(
        ValueError, match=r"needs layers to stand between; got none, set more layers"
    ):
        DHEN(config, example_schema())
