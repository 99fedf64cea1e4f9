import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.edcn import (
    EDCN,
    AttentionBridge,
    ConcatBridge,
    EDCNConfig,
    FieldGates,
    ProductBridge,
    SumBridge,
)

SCHEMA = example_schema(num_tasks=2)
DIM = 3


def build(**settings) -> EDCN:
    sizes = {"embedding_dim": DIM, "num_layers": 2}
    model = EDCN(parse_config(EDCNConfig, sizes | settings, "test"), SCHEMA)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def bridge_by_hand(bridge: nn.Module, kind: str, x: Tensor, h: Tensor) -> Tensor:
    if kind == "product":
        return x * h
    if kind == "sum":
        return x + h
    if kind == "concat":
        return torch.relu(bridge.joint.joint(torch.cat([x, h])))
    out = torch.zeros_like(x)
    for network, stream in ((bridge.cross, x), (bridge.deep, h)):
        first, last = network[0].layers[0], network[1].weight
        scores = last @ torch.relu(first.weight @ stream + first.bias)
        out = out + stream * scores.exp() / scores.exp().sum()
    return out


def by_loops(model: EDCN, fields: Tensor, kind: str, temperature: float, residual: bool) -> Tensor:
    """The equations for one row of fields [fields, dim], a field at a time."""
    shared, x0 = fields.flatten(), None
    for layer in range(len(model.crosses)):
        gates = model.regulations[layer].gates.gates
        pair = []
        for stream in range(2):
            total = sum(torch.exp(gate / temperature) for gate in gates[stream])
            weights = [torch.exp(gate / temperature) / total for gate in gates[stream]]
            pieces = shared.split(DIM)
            pair.append(torch.cat([w * piece for w, piece in zip(weights, pieces, strict=True)]))
        c, d = pair
        x0 = c if x0 is None else x0
        cross = getattr(model.crosses[layer], "cross", model.crosses[layer])
        x = torch.outer(x0, c) @ cross.product.weight[0] + cross.bias
        x = x + c if residual else x
        dense = model.dense[layer].layers[0]
        h = torch.relu(dense.weight @ d + dense.bias)
        shared = bridge_by_hand(model.bridges[layer], kind, x, h)
    return model.head.joint(torch.cat([x, h, shared]))


@pytest.mark.parametrize("kind", ["product", "sum", "concat", "attention"])
@pytest.mark.parametrize("residual", [True, False])
def test_logits_and_gradients_equal_the_loops(kind: str, residual: bool) -> None:
    model = build(
        bridge={"kind": kind},
        regulation={"kind": "softmax", "temperature": 0.5},
        cross_residual=residual,
    ).double()
    batch = random_batch(SCHEMA, 4)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    rows = [by_loops(model, row, kind, 0.5, residual) for row in model.embedding(batch)]
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
        assert actual.abs().max() > 0


def test_field_gates_worked_by_hand() -> None:
    gates = FieldGates(temperature=2.0).build(2, 2)
    log_nine = torch.tensor(9.0).log()
    with torch.no_grad():
        gates.gates.copy_(
            torch.stack([torch.zeros(2), torch.stack([log_nine * 2, torch.zeros(())])])
        )
    cross, deep = gates(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    torch.testing.assert_close(cross, torch.tensor([[0.5, 1.0, 1.5, 2.0]]))
    torch.testing.assert_close(deep, torch.tensor([[0.9, 1.8, 0.3, 0.4]]))


def test_a_higher_temperature_evens_the_gates() -> None:
    gates = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    spreads = []
    for temperature in (0.5, 1.0, 20.0):
        module = FieldGates(temperature=temperature).build(2, 1)
        with torch.no_grad():
            module.gates.copy_(gates)
        cross, _ = module(torch.ones(1, 2))
        spreads.append((cross.max() - cross.min()).item())
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.9
    assert spreads[2] < 0.1


@pytest.mark.parametrize(
    "config", [ProductBridge(), SumBridge(), ConcatBridge(), AttentionBridge()]
)
def test_bridges_keep_the_width_and_read_both_streams(config) -> None:
    bridge = config.build(4)
    x, h = torch.rand(2, 5, 4, requires_grad=True).unbind(0)
    out = bridge(x, h)
    assert out.shape == (5, 4)
    for gradient in torch.autograd.grad((out * torch.rand(5, 4)).sum(), (x, h)):
        assert gradient.any()


def test_every_stream_has_an_attention_of_its_own() -> None:
    bridge = AttentionBridge().build(4)
    x, h = torch.rand(5, 4), torch.rand(5, 4)
    before = bridge(x, h)
    with torch.no_grad():
        bridge.deep[1].weight.mul_(5)
    change = bridge(x, h) - before
    assert change.abs().max() > 1e-4
    torch.testing.assert_close(bridge(x, 0 * h), bridge.cross(x) * x)


def test_without_regulation_both_streams_read_the_same() -> None:
    model, batch = build(regulation={"kind": "none"}), random_batch(SCHEMA, 5)
    x = model.embedding(batch).flatten(1)
    cross, deep = model.regulations[0](x)
    assert cross is x
    assert deep is x


def test_batch_norm_normalises_every_layers_inputs_and_nothing_else() -> None:
    model, batch = build(batch_norm=True).train(), random_batch(SCHEMA, 64)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 4  # two streams, two layers
    x = model.embedding(batch).flatten(1)
    regulation = model.regulations[0]
    cross, deep = regulation(x)
    for stream, actual in enumerate((cross, deep)):
        norm = (regulation.cross_norm, regulation.deep_norm)[stream]
        weights = functional.softmax(regulation.gates.gates, 1)[stream].repeat_interleave(DIM)
        gated = x * weights
        centred = (gated - gated.mean(0)) / (gated.var(0, unbiased=False) + norm.eps).sqrt()
        torch.testing.assert_close(actual, centred * norm.weight + norm.bias)


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_without_meaning_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"regulation\.temperature.*greater than 0"):
        build(regulation={"kind": "softmax", "temperature": temperature})


def test_unknown_bridge_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'hadamard'.*product, sum, concat, attention"):
        build(bridge={"kind": "hadamard"})


def test_parameter_count_is_the_published_one() -> None:
    # BARS, Frappe_x1: 86,351 parameters over 5,389 embedding rows in 10 fields. Its batch norm
    # stands behind the gates, not in the dense layers.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    config = EDCNConfig(
        embedding_dim=10,
        num_layers=3,
        batch_norm=True,
        regulation=FieldGates(temperature=5),
        cross_residual=False,
        dropout=0.3,
    )
    assert sum(p.numel() for p in EDCN(config, schema).parameters()) == 86_351
