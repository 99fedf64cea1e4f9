"""DeRes and attention residuals against their equations, and against each other."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.connections.block_path import BlockPath, NoBlockPath
from rankloom.layers.connections.depth_attention import EPS
from rankloom.layers.connections.deres import HalfDeRes
from rankloom.layers.connections.path_gates import IdentityPathOnly
from rankloom.layers.connections.residual import Identity
from rankloom.layers.norm import RMSNorm
from rankloom.ranking.deres_parts import AttentionResidualConfig, DeResConnection

DIM, TOKENS, ROWS = 8, 3, 4


class Gate(nn.Module):
    """A gate that is the same number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, r: Tensor, d: Tensor) -> Tensor:
        return torch.full_like(r, self.value)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64)


def networks(num_layers: int) -> nn.ModuleList:
    """Layers that are not linear, and not the same."""
    torch.manual_seed(2)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(num_layers)
    ).double()


def build(num_layers: int, *, zero: bool = False, **settings: object) -> nn.Module:
    """A DeRes connection whose parameters that start at zero are drawn, unless `zero`."""
    torch.manual_seed(4)
    connection = DeResConnection.model_validate(settings).build(DIM, num_layers)
    assert isinstance(connection, nn.Module)
    return drawn(connection.double(), zero)


def drawn(connection: nn.Module, zero: bool = False) -> nn.Module:
    torch.manual_seed(3)
    for parameter in connection.parameters():
        if not zero:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return connection


def set_gates(connection: nn.Module, value: float) -> None:
    for fusion in connection.fusions:
        fusion.gate = Gate(value)


def rms_norm(value: Tensor, gain: Tensor) -> Tensor:
    return value / (value.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def slow_path(
    connection: nn.Module,
    values: Sequence[Tensor],
    layer: int,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """d of one layer, from the values of the blocks it sees."""
    queries = connection.path.queries
    out = torch.zeros_like(values[0])
    for row in range(out.shape[0]):
        for token in range(out.shape[1]):
            keys = [rms_norm(value[row, token], queries.gains.gain[layer]) for value in values]
            scores = torch.stack([queries.weight[layer] @ key for key in keys])
            weights = activation(scores)
            for weight, value in zip(weights, values, strict=True):
                out[row, token] += weight * value[row, token]
    return out


def slow_half(connection: HalfDeRes, x: Tensor, layers: nn.ModuleList, block_size: int) -> Tensor:
    """The channel-split reading, as the notes on the paper print it."""
    r, v = x[..., : DIM // 2], x[..., DIM // 2 :]
    bank, running, inp = [v], None, x
    for index, layer in enumerate(layers):
        f = layer(inp)
        r = r + f[..., : DIM // 2]
        running = f[..., DIM // 2 :] if running is None else running + f[..., DIM // 2 :]
        d = slow_path(connection, [*bank, running], index, functional.silu)
        gate = connection.fusions[index].gate
        g = torch.sigmoid(gate.a * r + gate.c * d + gate.b)
        out = g * r + (1 - g) * d
        if (index + 1) % block_size == 0:
            bank, running = [*bank, running], None
        if index + 1 < len(layers):
            inp = out @ connection.lifts[index + 1].weight.T
    return out


def slow_attention_residual(
    connection: nn.Module, x: Tensor, layers: nn.ModuleList, block_size: int
) -> Tensor:
    """The listing of Attention Residuals: attend, close the block, add. Query l stands at l - 1."""

    def attend(values: list[Tensor], layer: int) -> Tensor:
        if layer == 0:
            return values[0]  # one value, and weights that sum to one
        return slow_path(connection, values, layer - 1, lambda scores: scores.softmax(0))

    blocks, partial = [x], None
    for index, layer in enumerate(layers):
        seen = blocks if partial is None else [*blocks, partial]
        h = attend(seen, index)
        if index > 0 and index % block_size == 0:
            blocks, partial = [*blocks, partial], None
        out = layer(h)
        partial = out if partial is None else partial + out
    return attend([*blocks, partial], len(layers))


def assert_same(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of everything."""
    assert torch.allclose(first, second, atol=1e-10)
    weights = torch.randn_like(first)
    ours = torch.autograd.grad((first * weights).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((second * weights).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize(("num_layers", "block_size"), [(1, 2), (4, 2), (5, 2), (3, 1), (3, 8)])
def test_half_width_follows_its_equations(x: Tensor, num_layers: int, block_size: int) -> None:
    layers = networks(num_layers)
    connection = build(num_layers, block_size=block_size)
    out = connection(x, list(layers))
    assert out.shape == (ROWS, TOKENS, DIM // 2)
    parameters = [*connection.parameters(), *layers.parameters()]
    assert_same(out, slow_half(connection, x, layers, block_size), parameters)


@pytest.mark.parametrize(("num_layers", "block_size"), [(1, 2), (4, 2), (5, 2), (3, 1), (3, 8)])
def test_attention_residuals_follow_their_listing(
    x: Tensor, num_layers: int, block_size: int
) -> None:
    layers = networks(num_layers)
    config = AttentionResidualConfig(block_size=block_size)
    connection = drawn(config.build(DIM, num_layers).double())
    slow = slow_attention_residual(connection, x, layers, block_size)
    parameters = [*connection.parameters(), *layers.parameters()]
    assert_same(connection(x, list(layers)), slow, parameters)


def test_gate_at_one_is_the_plain_stack(x: Tensor) -> None:
    layers = list(networks(4))
    connection = build(4, width={"kind": "full"})
    set_gates(connection, 1.0)
    assert torch.equal(connection(x, layers), Identity(DIM)(x, layers))


@pytest.mark.parametrize("block_size", [1, 2])
def test_gate_at_zero_with_softmax_is_attention_residual(x: Tensor, block_size: int) -> None:
    layers = list(networks(5))
    connection = build(5, width={"kind": "full"}, activation="softmax", block_size=block_size)
    other = AttentionResidualConfig(block_size=block_size).build(DIM, 5).double()
    other.load_state_dict(connection.state_dict(), strict=False)
    set_gates(connection, 0.0)
    assert torch.equal(connection(x, layers), other(x, layers))
    alone = build(
        5,
        width={"kind": "full"},
        activation="softmax",
        block_size=block_size,
        fusion={"kind": "block_only"},
    )
    assert torch.equal(alone(x, layers), other(x, layers))


@pytest.mark.parametrize("width", ["half", "full"])
def test_queries_at_zero_silence_the_block_path(x: Tensor, width: str) -> None:
    layers = list(networks(4))
    connection = build(
        4, zero=True, width={"kind": width}, fusion={"kind": "block_only"}, query_std=0.0
    )
    assert connection(x, layers).count_nonzero() == 0


def test_one_block_with_softmax_is_that_block(x: Tensor) -> None:
    connection = build(
        3, width={"kind": "full"}, activation="softmax", running_block=False, block_size=3
    )
    set_gates(connection, 0.0)
    # Without a complete block there is nothing but the input.
    assert torch.allclose(connection(x, list(networks(3))), x)


@pytest.mark.parametrize(("num_layers", "block_size"), [(1, 2), (4, 2), (5, 2), (7, 3), (4, 1)])
def test_a_block_closes_after_every_block_size_layers(
    x: Tensor, num_layers: int, block_size: int
) -> None:
    path = build(num_layers, width={"kind": "full"}, block_size=block_size).path
    state = path.start(x)
    for layer in range(num_layers):
        _, state = path(state, layer, x, x)
    remainder = 0 if state.running is None else 1
    assert len(state.blocks) + remainder == 1 + -(-num_layers // block_size)


def test_silu_weights_forget_a_little_and_never_more(x: Tensor) -> None:
    connection = build(6)
    seen: list[Tensor] = []
    for weights in connection.path.weights:
        weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        for parameter in connection.path.parameters():
            parameter.mul_(5)
    connection(x, list(networks(6)))
    assert len(seen) == 6
    least = min(weights.min().item() for weights in seen)
    assert -0.2785 <= least < -0.1


def test_pure_identity_path_sums_every_output(x: Tensor) -> None:
    outputs: list[Tensor] = []
    layers = networks(4)
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    connection = build(4)
    streams: list[Tensor] = []
    connection.fusions[-1].register_forward_hook(
        lambda module, inputs, output: streams.extend(inputs)
    )
    connection(x, list(layers))
    half = slice(0, DIM // 2)
    expected = x[..., half] + sum(output[..., half] for output in outputs)
    assert torch.allclose(streams[0], expected)


def test_identity_path_alone_has_no_blocks(x: Tensor) -> None:
    layers = list(networks(3))
    full = build(3, width={"kind": "full"}, fusion={"kind": "identity_only"})
    assert not list(full.parameters())
    assert torch.equal(full(x, layers), Identity(DIM)(x, layers))
    half = build(3, fusion={"kind": "identity_only"})
    assert [name for name, _ in half.named_parameters()] == ["lifts.1.weight", "lifts.2.weight"]
    assert isinstance(half.path, NoBlockPath)
    assert all(isinstance(fusion, IdentityPathOnly) for fusion in half.fusions)


def test_chained_identity_path_goes_on_from_the_fused_output(x: Tensor) -> None:
    layers = networks(2)
    connection = build(2, width={"kind": "half", "chained": True}, fusion={"kind": "add"})
    seen: list[tuple[Tensor, ...]] = []
    for fusion in connection.fusions:
        fusion.register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    out = connection(x, list(layers))
    (_, _, first), (r, d, second) = seen
    update = layers[1](connection.lifts[1](first))
    assert torch.allclose(r, first + update[..., : DIM // 2])
    assert torch.equal(out, second)
    assert torch.allclose(second, r + d)


ACTIVATIONS = {
    "silu": functional.silu,
    "softmax": lambda scores: scores.softmax(0),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "clipped_silu": lambda scores: functional.silu(scores).clamp(min=0),
}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations(x: Tensor, activation: str) -> None:
    layers = list(networks(2))
    connection = build(
        2, width={"kind": "full"}, fusion={"kind": "block_only"}, activation=activation
    )
    first = layers[0](x)
    h = slow_path(connection, [x, first], 0, ACTIVATIONS[activation])
    second = first + layers[1](h)
    expected = slow_path(connection, [x, second], 1, ACTIVATIONS[activation])
    assert torch.allclose(connection(x, layers), expected)


@pytest.mark.parametrize(
    ("compression", "value"),
    [
        ("sum", lambda first, second: first + second),
        ("mean", lambda first, second: (first + second) / 2),
        ("last", lambda first, second: second),
    ],
)
def test_compressions(
    x: Tensor, compression: str, value: Callable[[Tensor, Tensor], Tensor]
) -> None:
    path = build(4, width={"kind": "full"}, compression=compression).path
    first, second = torch.randn_like(x), torch.randn_like(x)
    _, state = path(path.start(x), 0, x, first)
    _, state = path(state, 1, x, second)
    assert torch.allclose(state.blocks[-1].value, value(first, second))


def test_linear_compression_maps_the_sum(x: Tensor) -> None:
    path = build(4, zero=True, width={"kind": "full"}, compression="linear").path
    _, state = path(path.start(x), 0, x, x)
    _, state = path(state, 1, x, x)
    assert torch.equal(state.blocks[-1].value, 2 * x)
    with torch.no_grad():
        path.summarise.weight.copy_(torch.randn(DIM, DIM))
    _, state = path(path.start(x), 0, x, x)
    _, state = path(state, 1, x, x)
    assert torch.allclose(state.blocks[-1].value, 2 * x @ path.summarise.weight.T)


def test_value_scales(x: Tensor) -> None:
    settings = {"width": {"kind": "full"}, "fusion": {"kind": "block_only"}}
    layers = list(networks(1))
    values = [x, layers[0](x)]
    plain = build(1, **settings)
    queries = plain.path.queries
    weights = [
        functional.silu(rms_norm(value, queries.gains.gain[0]) @ queries.weight[0])[..., None]
        for value in values
    ]
    normed = [rms_norm(value, torch.ones(DIM)) for value in values]
    rms = build(1, value_scale="rms", **settings)(x, layers)
    count = build(1, value_scale="count", **settings)(x, layers)
    assert torch.allclose(rms, sum(w * v for w, v in zip(weights, normed, strict=True)))
    assert torch.allclose(count, plain(x, layers) / 2)


def test_depth_heads_are_attention_to_pieces(x: Tensor) -> None:
    settings = {"width": {"kind": "full"}, "fusion": {"kind": "block_only"}, "scaled": True}
    layers = list(networks(1))
    connection = build(1, num_depth_heads=2, **settings)
    queries = connection.path.queries
    expected = torch.zeros_like(x)
    for piece in (slice(0, 4), slice(4, 8)):
        for value in (x, layers[0](x)):
            key = rms_norm(value, queries.gains.gain[0])[..., piece]
            weight = functional.silu(key @ queries.weight[0, piece] / 2)  # sqrt(4)
            expected[..., piece] += weight[..., None] * value[..., piece]
    assert torch.allclose(connection(x, layers), expected)


@pytest.mark.parametrize("num_depth_heads", [1, 2])
def test_queries_made_from_the_input(x: Tensor, num_depth_heads: int) -> None:
    layers = list(networks(1))
    connection = build(
        1,
        width={"kind": "full"},
        fusion={"kind": "block_only"},
        query="input",
        num_depth_heads=num_depth_heads,
    )
    queries = connection.path.queries
    query = (x @ queries.weight[0].T).unflatten(-1, (num_depth_heads, -1))
    expected = torch.zeros_like(x)
    for value in (x, layers[0](x)):
        key = rms_norm(value, queries.gains.gain[0]).unflatten(-1, (num_depth_heads, -1))
        weight = functional.silu((query * key).sum(-1, keepdim=True))
        expected += (weight * value.unflatten(-1, (num_depth_heads, -1))).flatten(-2)
    assert torch.allclose(connection(x, layers), expected)


@pytest.mark.parametrize("key_gain", ["shared", "none"])
def test_key_gains(x: Tensor, key_gain: str) -> None:
    connection = build(3, width={"kind": "full"}, key_gain=key_gain)
    gains = [name for name, _ in connection.named_parameters() if "gain" in name]
    assert len(gains) == (key_gain == "shared")
    same = build(3, width={"kind": "full"})
    state = connection.state_dict()
    state.pop("path.queries.gains.gain", None)
    same.load_state_dict(state, strict=False)
    with torch.no_grad():
        shared = connection.path.queries.gains.gain if key_gain == "shared" else torch.ones(1)
        same.path.queries.gains.gain.copy_(shared.expand(3, DIM))
    layers = list(networks(3))
    assert torch.allclose(connection(x, layers), same(x, layers))


def gate_of(kind: str, r: Tensor, d: Tensor, gate: nn.Module) -> Tensor:
    """The gates' logits, written out."""
    both = torch.cat([r, d], dim=-1)
    if kind == "low_rank":
        hidden = both @ gate.reduce.weight.T
        return hidden @ gate.expand.weight.T + gate.expand.bias
    if kind in {"dense", "scalar"}:
        return both @ gate.joint.weight.T + gate.joint.bias
    return gate.b.expand_as(r)


@pytest.mark.parametrize("kind", ["low_rank", "dense", "scalar", "static"])
def test_gates(x: Tensor, kind: str) -> None:
    fusion = build(1, fusion={"kind": kind}, width={"kind": "full"}).fusions[0]
    r, d = torch.randn_like(x), torch.randn_like(x)
    g = torch.sigmoid(gate_of(kind, r, d, fusion.gate))
    assert torch.allclose(fusion(r, d), g * r + (1 - g) * d)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({}, 2.0),
        ({"width": {"kind": "half", "chained": True}}, 4.0),
        ({"width": {"kind": "full"}}, 4.0),
        ({"fusion": {"kind": "diagonal", "bias": 0.0}}, 0.0),
    ],
)
@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "dense", "scalar", "static"])
def test_gates_start_on_the_identity_path(
    x: Tensor, settings: dict[str, object], start: float, kind: str
) -> None:
    fusion = {"kind": kind, **settings.get("fusion", {})} | {"kind": kind}
    connection = build(2, zero=True, **(settings | {"fusion": fusion}))
    half = x[..., : connection.out_dim]
    g = connection.fusions[0].gate(half, half)
    assert torch.allclose(g, torch.sigmoid(torch.tensor(start, dtype=torch.float64)).expand_as(g))


@pytest.mark.parametrize("skip", ["scalar", "vector", "matrix"])
def test_learnable_skips_start_as_the_identity(x: Tensor, skip: str) -> None:
    layers = list(networks(3))
    for width in ({"kind": "full"}, {"kind": "half"}):
        learnable = build(3, zero=True, skip=skip, width=width)
        torch.manual_seed(5)
        for connection in (learnable,):
            queries = connection.path.queries.weight
            with torch.no_grad():
                queries.copy_(torch.randn_like(queries))
        plain = DeResConnection.model_validate({"width": width}).build(DIM, 3).double()
        plain.load_state_dict(learnable.state_dict(), strict=False)
        assert torch.allclose(learnable(x, layers), plain(x, layers))


@pytest.mark.parametrize("width", ["half", "full"])
def test_layers_may_give_fewer_tokens(x: Tensor, width: str) -> None:
    """Token by token, so the last tokens come out as they would with all tokens kept."""
    layers = networks(5)

    def narrowed(index: int) -> Callable[[Tensor], Tensor]:
        kept = [3, 2, 2, 1, 1][index]
        return lambda tokens: layers[index](tokens)[:, -kept:]

    connection = build(5, width={"kind": width})
    out = connection(x, [narrowed(index) for index in range(5)])
    assert torch.allclose(out, connection(x, list(layers))[:, -1:])


@pytest.mark.parametrize(
    ("settings", "starts_at_zero"),
    [
        ({}, True),
        ({"activation": "softmax", "fusion": {"kind": "block_only"}}, True),
        ({"activation": "relu"}, False),
        ({"activation": "clipped_silu", "query": "input"}, False),
        ({"fusion": {"kind": "block_only"}}, False),
        ({"activation": "relu", "query_std": 0.0}, True),
    ],
)
def test_queries_start_where_they_can_learn(
    x: Tensor, settings: dict[str, object], starts_at_zero: bool
) -> None:
    connection = build(3, zero=True, **settings)
    queries = connection.path.queries.weight
    assert (queries.count_nonzero() == 0) == starts_at_zero
    out = connection(x, list(networks(3)))
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), [queries])
    dead = settings.get("activation") == "relu" and starts_at_zero
    assert (gradient.count_nonzero() == 0) == dead


def test_attention_residuals_with_silu_do_not_start_dead(x: Tensor) -> None:
    connection = AttentionResidualConfig(activation="silu").build(DIM, 3).double()
    assert connection.path.queries.weight.count_nonzero()
    assert connection(x, list(networks(3))).count_nonzero()


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="block_only there is no identity path"):
        DeResConnection.model_validate({"fusion": {"kind": "block_only"}, "skip": "matrix"})
    with pytest.raises(ValueError, match="nobody would read the last block"):
        DeResConnection.model_validate({"fusion": {"kind": "block_only"}, "running_block": False})
    with pytest.raises(ValueError, match="nobody would read the last block"):
        AttentionResidualConfig(running_block=False)
    with pytest.raises(ValueError, match="dim must be even; got 7"):
        DeResConnection(fusion={"kind": "identity_only"}).build(7, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_heads must divide dim; got dim=8, num_heads=3"):
        AttentionResidualConfig(num_depth_heads=3).build(8, 2)
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        BlockPath(nn.Identity(), 8, 2, block_size=0)  # type: ignore[arg-type]


def test_norm_raises_half_precision() -> None:
    norm = RMSNorm(4)
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert torch.allclose(norm(x), torch.tensor([[1.2, 1.6, 0.0, 0.0]]), atol=1e-5)
