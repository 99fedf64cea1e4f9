import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dlf import DLF, DLFConfig, DLFLayer
from rankloom.ranking.dlf_parts import (
    AttentionPooling,
    Concatenation,
    CrossProduct,
    CurrentOrder,
    Gated,
    GatedResidual,
    GatePooling,
    Implicit,
    LateFusion,
    LowOrder,
    NetworkFusion,
    PerToken,
    Plain,
)

SCHEMA = example_schema(
    num_categorical=4, num_numeric=0, sequences=False, vectors=False
)  # with item: five fields


def tokens(number: int, seed: int = 0, rows: int = 3, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, number, dim, generator=generator, dtype=torch.float64)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    return torch.autograd.grad((out * weights).sum(), inputs)


def check(block: nn.Module, x: Tensor, x0: Tensor, slow: Tensor) -> None:
    """Equal values, and equal gradients of the input and of every parameter."""
    fast = block(x, x0)
    torch.testing.assert_close(fast, slow)
    inputs = (x, *block.parameters())
    for one, other in zip(gradients(fast, inputs), gradients(slow, inputs), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def pair_products(left: Tensor, right: Tensor) -> Tensor:
    """[rows, left tokens, right tokens], one product after another."""
    return torch.stack(
        [
            torch.stack([torch.stack([torch.dot(a, b) for b in right[r]]) for a in left[r]])
            for r in range(len(left))
        ]
    )


@pytest.mark.parametrize("in_tokens", [5, 6])
def test_low_order_block_crosses_the_input_with_the_raw_embeddings(in_tokens: int) -> None:
    torch.manual_seed(0)
    block = LowOrder(rank=2).build(5, in_tokens, 4, 3).double()
    x, x0 = tokens(in_tokens).requires_grad_(), tokens(5, seed=1)
    left = x0 if in_tokens == 5 else torch.einsum("mn,bnd->bmd", block.project.weight, x0)
    inner = block.block
    compressed = pair_products(left, x) @ inner.compress.weight.T
    out = inner.network[0](inner.norm(compressed.flatten(1)))
    check(block, x, x0, out.clamp(min=0).reshape(3, 3, 4))


def test_current_order_block_crosses_the_input_with_itself() -> None:
    torch.manual_seed(0)
    block = CurrentOrder(rank=9).build(5, 6, 4, 3).double()
    assert block.block.compress.weight.shape == (6, 6)  # the rank is capped at the tokens
    x, x0 = tokens(6).requires_grad_(), tokens(5, seed=1)
    inner = block.block
    compressed = pair_products(x, x) @ inner.compress.weight.T
    out = inner.network[0](inner.norm(compressed.flatten(1)))
    check(block, x, x0, out.clamp(min=0).reshape(3, 3, 4))


@pytest.mark.parametrize("out_tokens", [6, 3])
def test_token_reading_makes_a_token_of_every_tokens_products(out_tokens: int) -> None:
    torch.manual_seed(0)
    block = CurrentOrder(rank=2, reading=PerToken()).build(5, 6, 4, out_tokens).double()
    x, x0 = tokens(6).requires_grad_(), tokens(5, seed=1)
    inner = block.block
    compressed = pair_products(x, x) @ inner.compress.weight.T  # [rows, tokens, rank]
    out = torch.relu(compressed @ inner.expand.weight.T + inner.expand.bias)
    if out_tokens != 6:
        out = torch.einsum("mn,bnd->bmd", inner.tokens.weight, out)
    check(block, x, x0, out)


def test_implicit_block_maps_every_token_by_itself() -> None:
    torch.manual_seed(0)
    block = Implicit().build(5, 6, 4, 3).double()
    x = tokens(6).requires_grad_()
    mapped = torch.stack(
        [
            torch.stack([(block.features.weight @ t + block.features.bias).clamp(min=0) for t in r])
            for r in x
        ]
    )
    check(block, x, tokens(5), torch.einsum("mn,bnd->bmd", block.tokens.weight, mapped))


def test_another_block_can_take_a_stream() -> None:
    torch.manual_seed(0)
    block = CrossProduct().build(5, 6, 4, 3).double()
    x, x0 = tokens(6).requires_grad_(), tokens(5, seed=1)
    raw = torch.einsum("mn,bnd->bmd", block.raw.weight, x0)
    own = torch.einsum("mn,bnd->bmd", block.tokens.weight, x)
    own = own @ block.features.weight.T + block.features.bias
    check(block, x, x0, (raw * own).clamp(min=0))
    config = DLFConfig(embedding_dim=4, num_tokens=3, streams=(CrossProduct(), Implicit()))
    assert DLF(config, SCHEMA)(random_batch(SCHEMA, 3)).shape == (3, SCHEMA.num_tasks)


def test_gate_is_clipped_element_by_element() -> None:
    residual = GatedResidual(2, eps=0.5)
    with torch.no_grad():
        residual.gate.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    x = torch.tensor([[[2.0, 3.0]]], requires_grad=True)
    out = residual(x)  # gate [2, -3] -> [2, 0.5]
    torch.testing.assert_close(out, torch.tensor([[[4.0, 1.5]]]))
    out.sum().backward()
    # d/dx of x^2 is 2x; where it is clipped, the factor eps stays.
    torch.testing.assert_close(x.grad, torch.tensor([[[4.0, 0.5]]]))
    # The open element's row of W gets x * x; the clipped one's nothing.
    torch.testing.assert_close(residual.gate.weight.grad, torch.tensor([[4.0, 6.0], [0.0, 0.0]]))


def test_layer_adds_streams_fusion_and_gated_input() -> None:
    torch.manual_seed(0)
    config = DLFConfig(embedding_dim=4, num_tokens=3, num_layers=1)
    layer = DLF(config, SCHEMA).body.layers[0]
    assert isinstance(layer, DLFLayer)
    x = torch.randn(3, 5, 4)
    streams = [stream(x, x) for stream in layer.streams]
    fused = layer.fusion(torch.stack(streams, dim=1))
    gate = torch.maximum(x @ layer.residual.gate.weight.T, torch.tensor(1e-6))
    kept = torch.einsum("mn,bnd->bmd", layer.project.weight, gate * x)
    expected = layer.norm(torch.cat([*streams, fused], dim=1) + kept)
    torch.testing.assert_close(layer(x, x), expected)


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, [12, 12]),
        ({"streams": (CurrentOrder(), Implicit())}, [9, 9]),
        ({"fusion": Concatenation()}, [9, 9]),
        ({"fusion": GatePooling()}, [12, 12]),
        ({"fusion": NetworkFusion()}, [12, 12]),
        ({"fusion": AttentionPooling()}, [12, 12]),
        ({"residual": Plain()}, [12, 12]),
    ],
)
def test_numbers_of_tokens(settings: dict[str, object], widths: list[int]) -> None:
    """Five fields enter; blocks give three tokens each, and what fuses gives three more."""
    model = DLF(DLFConfig(embedding_dim=4, num_tokens=3, num_layers=2, **settings), SCHEMA)
    seen: list[int] = []
    for layer in model.body.layers:
        layer.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
    model(random_batch(SCHEMA, 2))
    assert seen == widths


def test_residual_needs_no_projection_when_tokens_stay() -> None:
    """Twelve fields enter, and three blocks and their fusion give three tokens each."""
    schema = example_schema(num_categorical=11, num_numeric=0, sequences=False, vectors=False)
    model = DLF(DLFConfig(embedding_dim=4, num_tokens=3, num_layers=1), schema)
    assert isinstance(model.body.layers[0].project, nn.Identity)
    assert model(random_batch(schema, 2)).shape == (2, schema.num_tasks)


def test_late_fusion_keeps_streams_apart_until_the_head() -> None:
    config = DLFConfig(embedding_dim=4, num_tokens=3, num_layers=2, fusion=LateFusion())
    model = DLF(config, SCHEMA)
    batch = random_batch(SCHEMA, 4)
    before = model.body(model.embedding(batch))
    with torch.no_grad():
        for parameter in model.body.stacks[1].parameters():
            parameter.add_(1.0)
    after = model.body(model.embedding(batch))
    changed = (before != after).any(dim=2).any(dim=0)
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_fused_streams_move_each_other() -> None:
    config = DLFConfig(embedding_dim=4, num_tokens=3, num_layers=2)
    model = DLF(config, SCHEMA)
    batch = random_batch(SCHEMA, 4)
    before = model.body(model.embedding(batch))
    with torch.no_grad():
        for parameter in model.body.layers[0].streams[1].parameters():
            parameter.add_(1.0)
    after = model.body(model.embedding(batch))
    assert (before != after).any(dim=2).any(dim=0).all()


@pytest.mark.parametrize("residual", [Gated(), Plain()])
def test_twelve_layers_stay_finite(residual: Gated | Plain) -> None:
    torch.manual_seed(0)
    config = DLFConfig(embedding_dim=8, num_tokens=4, num_layers=12, residual=residual)
    model = DLF(config, SCHEMA)
    with torch.no_grad():
        model.embedding.table.weight.normal_(std=1.0)
    batch = random_batch(SCHEMA, 64)
    logits = model(batch)
    nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
    assert logits.isfinite().all()
    assert logits.std() > 0
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() < 1e4
    assert any(p.grad.any() for p in model.body.layers[0].parameters())


def test_attention_between_streams_needs_two() -> None:
    config = DLFConfig(streams=(Implicit(),), fusion=AttentionPooling())
    with pytest.raises(ValueError, match="needs two of them; got one"):
        DLF(config, SCHEMA)


def test_a_layer_needs_a_stream() -> None:
    with pytest.raises(ValidationError, match="streams"):
        DLFConfig(streams=())
