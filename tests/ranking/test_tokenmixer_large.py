import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import ranking_loss
from rankloom.layers.routing import balance
from rankloom.ranking.tokenmixer_large import TokenMixerLarge, TokenMixerLargeConfig

SCHEMA = example_schema(num_tasks=2)
PLAIN = example_schema(num_categorical=2, num_numeric=0, sequences=False, vectors=False)
SIZES = {
    "embedding_dim": 3,
    "dim": 6,
    "num_heads": 2,
    "num_layers": 4,
    "tokens": {"kind": "slices", "num_tokens": 3},
    "head": {"hidden": [5]},
}
EXPERTS = {"network": {"kind": "top_k_experts", "num_experts": 4, "num_active": 3}}


def build(schema=SCHEMA, **settings) -> TokenMixerLarge:
    config = parse_config(TokenMixerLargeConfig, SIZES | settings, "test")
    model = TokenMixerLarge(config, schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def double_batch(rows: int, schema=SCHEMA) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def swiglu(network: nn.Module, t: int, x: Tensor) -> Tensor:
    def affine(layer: nn.Module, x: Tensor) -> Tensor:
        return x @ layer.weight[t] + layer.bias[t, 0]

    return affine(network.down, functional.silu(affine(network.gate, x)) * affine(network.up, x))


def experts_on(part: nn.Module, t: int, x: Tensor, scale: float, num_active: int) -> Tensor:
    out = swiglu(part.shared, t, x)
    project, experts = part.router.project, part.experts
    shares = torch.softmax(x @ project.weight[t] + project.bias[t, 0], 0)
    for e in shares.argsort(descending=True)[: num_active - 1]:
        gate, up = (experts.expand[t, e] @ x + experts.expand_bias[t, e]).chunk(2)
        hidden = functional.silu(gate) * up
        out = out + scale * shares[e] * (hidden @ experts.reduce[t, e] + experts.reduce_bias[t, e])
    return out


def networks_by_loops(part: nn.Module, row: Tensor, settings) -> Tensor:
    if "network" in settings:
        scale, active = settings["network"].get("gate_scale", 2.0), 3
        return torch.stack([experts_on(part, t, x, scale, active) for t, x in enumerate(row)])
    return torch.stack([swiglu(part.network, t, x) for t, x in enumerate(row)])


def block_by_loops(block: nn.Module, row: Tensor, settings) -> Tensor:
    """One layer's update of one row [tokens, dim], as the equations write it."""
    pieces = [x.chunk(2) for x in block.norm(row)]
    mixed = torch.stack([torch.cat([p[h] for p in pieces]) for h in range(2)])
    if settings.get("inner_residual", True):
        mixed = mixed + networks_by_loops(block.mixed_networks.network, mixed, settings)
    else:
        mixed = networks_by_loops(block.mixed_networks, mixed, settings)
    back = [torch.cat([head.chunk(len(row))[t] for head in mixed]) for t in range(len(row))]
    return networks_by_loops(block.networks, block.reverted_norm(torch.stack(back)), settings)


def by_loops(model: TokenMixerLarge, batch: Batch, interval: int | None, settings) -> list[Tensor]:
    """Logits after every layer."""
    found = []
    for row in model.tokens(batch).x:
        inputs, logits = [row], []
        last = len(model.stack.layers)
        for number, unit in enumerate(model.stack.layers, 1):
            (layer,) = unit.sublayers
            block = getattr(layer, "block", layer)
            x = inputs[-1] + block_by_loops(block, inputs[-1], settings)
            if interval is not None and number % interval == 0 and number != last:
                x = x + inputs[number - interval]
            inputs.append(x)
            logits.append(model.head[1](model.stack.norm(x).mean(0)))
        found.append(torch.stack(logits))
    return list(torch.stack(found, dim=1))  # a layer each, [batch, tasks]


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({}, 2),
        ({"residual_interval": 3}, 3),
        ({"residual_interval": "none", "inner_residual": False}, None),
        (EXPERTS, 2),
        ({"network": EXPERTS["network"] | {"gate_scale": 4.0, "sparse": False}}, 2),
    ],
    ids=["two", "three", "plain", "experts", "experts on all rows"],
)
def test_logits_and_loss_equal_the_equations_one_row_and_token_at_a_time(
    settings, interval: int | None
) -> None:
    model, batch = build(**settings), double_batch(3)
    expected = by_loops(model, batch, interval, settings)
    torch.testing.assert_close(model(batch), expected[-1])
    labels, *_ = losses = [ranking_loss(one, batch).total for one in reversed(expected)]
    auxiliary = 0.1 * sum(losses[1:]) / 3
    loss = model.loss(batch)
    torch.testing.assert_close(loss.parts["labels"], labels)
    torch.testing.assert_close(loss.parts["auxiliary"], auxiliary)
    parameters = list(model.parameters())
    totals = [loss.total, labels + auxiliary]
    torch.testing.assert_close(*totals)
    gradients = [torch.autograd.grad(total, parameters) for total in totals]
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-8)


def test_parameter_count() -> None:
    model = build(num_layers=1)
    tokens, dim, heads, hidden = 3, 6, 2, 2
    mixed = tokens * dim // heads
    expected = 2 * dim  # norms of the block
    for count, width in ((heads, mixed), (tokens, dim)):
        expected += count * (3 * hidden * width**2 + 2 * hidden * width + width)
    assert sum(p.numel() for p in model.stack.layers.parameters()) == expected


def test_experts_with_the_shared_one_have_the_hidden_units_of_one_network() -> None:
    model = build(num_layers=1, **EXPERTS)
    (block,) = model.stack.layers[0].sublayers
    assert block.networks.shared.up.weight.shape[2] == 3  # 12 hidden units, 4 experts
    assert block.networks.experts.reduce.shape == (3, 3, 3, 6)
    assert build(num_layers=1, network=EXPERTS["network"] | {"num_experts": 5})


def test_a_new_layer_changes_little() -> None:
    sizes = []
    for settings in ({}, {"down_scale": 1.0}):
        torch.manual_seed(0)
        config = parse_config(TokenMixerLargeConfig, SIZES | settings, "test")
        model = TokenMixerLarge(config, SCHEMA)
        model.stack.layers[0].register_forward_hook(
            lambda module, args, out: sizes.append(out.std().item())
        )
        model(random_batch(SCHEMA, 20))
    assert 0.003 < sizes[0] / sizes[1] < 0.03


def test_intermediate_losses_are_not_there_without_weight_or_depth() -> None:
    batch = double_batch(4)
    for settings in ({"auxiliary_weight": 0.0}, {"num_layers": 1}):
        model = build(**settings)
        loss, expected = model.loss(batch), ranking_loss(model(batch), batch)
        assert torch.equal(loss.total, expected.total)
        assert loss.parts.keys() == expected.parts.keys()


def test_balance_is_the_weighted_mean_over_networks() -> None:
    network = EXPERTS["network"] | {"balance_weight": 0.5}
    model, batch = build(network=network, auxiliary_weight=0.0), double_batch(6)
    routings = []
    for module in model.modules():
        if hasattr(module, "num_active"):
            module.register_forward_hook(lambda module, args, out: routings.append(out))
    loss = model.loss(batch)
    assert len(routings) == 8
    expected = 0.5 * sum(balance(routing) for routing in routings) / 8
    torch.testing.assert_close(loss.parts["balance"], expected)
    torch.testing.assert_close(loss.total, loss.parts["labels"] + expected)


def test_the_global_token_is_first() -> None:
    tokens = {"kind": "per_field", "global_token": True}
    model = build(tokens=tokens, pooling={"kind": "token", "index": 0}, num_layers=1)
    batch = double_batch(2)
    x = model.tokens(batch).x
    fields = model.tokens.embedding(batch)
    assert x.shape[1] == fields.shape[1] + 1
    torch.testing.assert_close(x[:, 0], model.tokens.fields.network(fields.flatten(1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 4}, r"got dim=6, num_heads=4; nearest dim that works: 4 or 8"),
        (
            {"network": EXPERTS["network"] | {"num_active": 5}},
            "num_active must be at most num_experts; got num_active=5, num_experts=4",
        ),
        ({"connection": {"kind": "deres"}}, "got width 3 for dim=6; set auxiliary_weight = 0"),
    ],
)
def test_settings_that_do_not_fit(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_narrower_connection_works_without_intermediate_losses() -> None:
    model = build(connection={"kind": "deres"}, auxiliary_weight=0.0)
    assert model(double_batch(3)).isfinite().all()


def test_the_loss_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    network = EXPERTS["network"] | {"balance_weight": 0.1}
    settings = SIZES | {"num_layers": 2, "network": network}
    config = parse_config(TokenMixerLargeConfig, settings, "test")
    model, batch = TokenMixerLarge(config, PLAIN), random_batch(PLAIN, 5)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    with torch.no_grad():  # the contract tests compile backward
        torch.testing.assert_close(compiled(batch).total, model.loss(batch).total)
