import pytest
import torch
from torch import Tensor, nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dcnv2 import DCNv2, DCNv2Config
from rankloom.ranking.gdcn import GDCN, GDCNConfig, _GatedCross

SCHEMA = example_schema(num_tasks=2)
SIZES = {"embedding_dim": 3, "hidden": [6, 5], "num_crosses": 2}

structures = pytest.mark.parametrize("kind", ["parallel", "stacked"])


def build(kind: str, **settings) -> GDCN:
    config = parse_config(GDCNConfig, SIZES | {"structure": {"kind": kind}} | settings, "test")
    model = GDCN(config, SCHEMA)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def crosses(model: GDCN, kind: str) -> list[_GatedCross]:
    stream = model.streams[0]
    return list((stream if kind == "parallel" else stream[0]).layers)


def test_gated_cross_worked_by_hand() -> None:
    layer = _GatedCross(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 3.0]]))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    # x = (3, 0): W x + b = (4, -1), G x = (0, 0), gates one half; x0 = (2, 5).
    out = layer(torch.tensor([[2.0, 5.0]]), torch.tensor([[3.0, 0.0]]))
    assert out.tolist() == [[2 * 4 * 0.5 + 3, 5 * -1 * 0.5]]


@structures
def test_logits_and_gradients_equal_the_papers_loops(kind: str) -> None:
    model = build(kind).double()
    batch = random_batch(SCHEMA, 4)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    deep = model.streams[1] if kind == "parallel" else model.streams[0][1]
    rows = []
    for x0 in model.embedding(batch).flatten(1):
        x, width = x0, len(x0)
        for layer in crosses(model, kind):
            units = []
            for i in range(width):
                crossed = sum(layer.weight[i, j] * x[j] for j in range(width)) + layer.bias[i]
                gate = torch.sigmoid(sum(layer.weight[width + i, j] * x[j] for j in range(width)))
                units.append(x0[i] * crossed * gate + x[i])
            x = torch.stack(units)
        below = x0 if kind == "parallel" else x
        out = deep(below.unsqueeze(0))[0]
        rows.append(model.head.joint(torch.cat([x, out]) if kind == "parallel" else out))
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def gates_at_one(model: GDCN, kind: str) -> None:
    """A gate without weights is one half; twice the crossing makes up for it."""
    with torch.no_grad():
        for layer in crosses(model, kind):
            width = layer.bias.shape[0]
            layer.weight[width:] = 0
            layer.weight[:width] *= 2
            layer.bias *= 2


@structures
def test_with_gates_at_one_it_is_dcnv2(kind: str) -> None:
    model = build(kind)
    config = parse_config(DCNv2Config, SIZES | {"structure": {"kind": kind}}, "test")
    other = DCNv2(config, SCHEMA)
    other.embedding.load_state_dict(model.embedding.state_dict())
    other.head.load_state_dict(model.head.state_dict())
    deep = model.streams[1] if kind == "parallel" else model.streams[0][1]
    other.structure.deep.load_state_dict(deep.state_dict())
    with torch.no_grad():
        for source, target in zip(crosses(model, kind), other.structure.cross.layers, strict=True):
            width = source.bias.shape[0]
            target.weight.copy_(source.weight[:width])
            target.bias.copy_(source.bias)
    batch = random_batch(SCHEMA, 6)
    assert not torch.allclose(model(batch), other(batch))
    gates_at_one(model, kind)
    torch.testing.assert_close(model(batch), other(batch))


def test_a_closed_gate_leaves_the_residual() -> None:
    layer = _GatedCross(3)
    with torch.no_grad():
        layer.weight[3:] = -1e4
    x0, x = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    torch.testing.assert_close(layer(x0, x), x)


def test_both_halves_start_as_linear_layers_of_their_own() -> None:
    weight: Tensor = _GatedCross(200).weight.detach()
    expected = (2 / 400) ** 0.5  # xavier-normal of [200, 200], not of [400, 200]
    for half in weight.split(200):
        assert abs(half.std() / expected - 1) < 0.02


def test_under_autocast_it_stays_close() -> None:
    model, batch = build("parallel"), random_batch(SCHEMA, 20)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    error = (rounded.float() - model(batch)).abs().max() / model(batch).abs().max()
    assert 0 < error < 0.05


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'beside'.*parallel, stacked"):
        build("beside")
