"""Settings of connections that mix, through a model."""

import re

import pytest
import torch
from torch import nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.connections import IdentityConfig, connect
from rankloom.ranking.mixed_connections import MHCConfig, MUDDConfig
from rankloom.ranking.transformer import Transformer, TransformerConfig

SCHEMA = example_schema(num_tasks=2)
SIZES = {"dim": 8, "num_heads": 2, "num_layers": 3, "embedding_dim": 4, "head": {"hidden": [6]}}

KINDS = {
    "denseformer": {"kind": "denseformer"},
    "dilated": {"kind": "denseformer", "dilation": 2},
    "periodic": {"kind": "denseformer", "period": 2, "per_sublayer": True},
    "static": {"kind": "hyper_connections", "coefficients": {"kind": "static"}},
    "dynamic": {"kind": "hyper_connections"},
    "around layers": {"kind": "hyper_connections", "per_sublayer": False, "pool": "mean"},
    "mhc": {"kind": "mhc", "num_steps": 2, "num_streams": 3},
    "mhc ablation": {"kind": "mhc", "fixed": ["pre", "res"], "per_sublayer": False},
    "mudd": {"kind": "mudd", "hidden_multiple": 4},
    "mudd one stream": {"kind": "mudd", "num_streams": 1, "per_sublayer": True},
    "ancre": {"kind": "ancre"},
}
EVERY = pytest.mark.parametrize("connection", KINDS.values(), ids=KINDS)


def build(connection: dict[str, object]) -> Transformer:
    config = parse_config(TransformerConfig, SIZES | {"connection": connection}, "test")
    return Transformer(config, SCHEMA)


def copy_weights(plain: Transformer, model: Transformer) -> None:
    """Everything outside the connection; an attention's one norm becomes that of all streams."""
    weights, ours = plain.state_dict(), model.state_dict()
    sources = {
        name: re.sub(r"norms\.\d", "norm", name)
        for name in ours
        if not name.startswith("stack.connection.")
    }
    assert set(sources.values()) == set(weights)
    ours.update({name: weights[source] for name, source in sources.items()})
    model.load_state_dict(ours)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "ancre"])
def test_it_starts_as_the_plain_transformer(name: str) -> None:
    model = build(KINDS[name])
    around = len(model.stack.layers) == 2 * SIZES["num_layers"]
    plain = build({"kind": "identity", "per_sublayer": around})
    for norm in (module for module in plain.modules() if isinstance(module, nn.RMSNorm)):
        nn.init.normal_(norm.weight, mean=1.0, std=0.3)
    copy_weights(plain, model)
    batch = random_batch(SCHEMA, 5)
    torch.testing.assert_close(model(batch), plain(batch), rtol=1e-4, atol=1e-5)


@EVERY
def test_every_weight_is_reached(connection: dict[str, object]) -> None:
    model = build(connection)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(random_batch(SCHEMA, 64))
    logits.float().square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    for rows in (0, 1):
        assert model.eval()(random_batch(SCHEMA, rows)).shape == (rows, 2)


@pytest.mark.parametrize("name", ["mhc", "mudd"])
def test_export_takes_other_batch_sizes(name: str) -> None:
    model = build(KINDS[name]).eval()
    batch = random_batch(SCHEMA, 4)
    shapes = torch.export.ShapesCollection()
    batch.map(lambda tensor: shapes.__setitem__(tensor, {0: torch.export.Dim.DYNAMIC}) or tensor)
    exported = torch.export.export(model, (batch,), dynamic_shapes=shapes)
    other = random_batch(SCHEMA, 7, seed=3)
    torch.testing.assert_close(exported.module()(other), model(other))


def test_streams_need_a_host_that_takes_them() -> None:
    layers = [[nn.Identity()]]
    message = "layers do not take; use num_streams = 1"
    with pytest.raises(ValueError, match=message):
        connect(layers, MUDDConfig(), 8)
    assert connect(layers, MUDDConfig(num_streams=1), 8).out_dim == 8
    assert connect(layers, MUDDConfig(), 8, takes_streams=True).out_dim == 8
    assert not IdentityConfig().separate_streams


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="per_sublayer needs num_streams = 1; got 4"):
        MUDDConfig(per_sublayer=True)
    with pytest.raises(ValueError, match="at least one of pre, post and res must be learned"):
        MHCConfig(fixed=("pre", "res", "post")).build(8, 2)
    with pytest.raises(ValueError, match="period must be between 1 and .* 3; got 4"):
        build({"kind": "denseformer", "period": 4})
