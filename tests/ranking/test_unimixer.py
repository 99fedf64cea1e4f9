import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.unimixer import UniMixer, UniMixerConfig, UniMixing

SCHEMA = example_schema(num_categorical=1, num_numeric=1, sequences=False, vectors=False)
"""Three fields."""
SIZES = {
    "embedding_dim": 2,
    "dim": 4,
    "tokens": {"kind": "per_field"},
    "block_size": 2,
    "expansion": 2,
    "head": {"hidden": [5]},
}
LITE = {
    "local_matrices": {"kind": "bases", "num_bases": 2},
    "global_matrix": {"kind": "low_rank", "rank": 3},
}
MATRICES = [
    {},
    LITE,
    LITE | {"matrices": {"symmetric": False, "num_steps": 2}},
    {"local_matrices": {"kind": "shared"}, "matrices": {"kind": "free"}},
    {"block_size": 6, "matrices": {"end_temperature": 0.5, "temperature_steps": 2}},
]
IDS = ["paper", "lite", "not symmetric", "free and shared", "other blocks"]


def parse(**settings) -> UniMixerConfig:
    return parse_config(UniMixerConfig, SIZES | settings, "test")


def build(schema=SCHEMA, **settings) -> UniMixer:
    model = UniMixer(parse(**settings), schema).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(rows: int, schema=SCHEMA) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def raw_local(part: nn.Module, block: int) -> Tensor:
    if hasattr(part, "bases"):
        return sum(share * z for share, z in zip(part.shares[block], part.bases, strict=True))
    return part.weight[block % len(part.weight)]


def raw_global(part: nn.Module) -> Tensor:
    return part.left[0] @ part.right[0] if hasattr(part, "left") else part.weight[0]


def constrained(v: Tensor, config: UniMixerConfig, temperature: float) -> Tensor:
    """What the notes call Sinkhorn(exp((V + V^T) / (2 temperature)))."""
    if config.matrices.kind == "free":
        return v
    if config.matrices.symmetric:
        v = (v + v.T) / 2
    m = (v / temperature).exp()
    for _ in range(config.matrices.num_steps):
        m = m / m.sum(0, keepdim=True)
        m = m / m.sum(1, keepdim=True)
    return m


def mixing_by_loops(
    mixing: UniMixing, config: UniMixerConfig, row: Tensor, temperature: float
) -> Tensor:
    """One row [tokens, dim], block by block."""
    size = config.block_size
    pieces = row.flatten().split(size)
    local = [
        piece @ constrained(raw_local(mixing.local_matrices, i), config, temperature)
        for i, piece in enumerate(pieces)
    ]
    between = constrained(raw_global(mixing.global_matrix), config, temperature)
    met = [sum(w * piece for w, piece in zip(weights, local, strict=True)) for weights in between]
    return torch.cat(met).view_as(row)


def assert_same_with_gradients(actual: Tensor, expected: Tensor, parameters) -> None:
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(actual)
    gradients = [
        torch.autograd.grad((out * weights).sum(), parameters) for out in (actual, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("settings", MATRICES, ids=IDS)
def test_mixing_equals_the_equations_one_block_at_a_time(settings) -> None:
    config = parse(**settings)
    mixing = UniMixing(config, num_tokens=3).double().eval()
    for parameter in mixing.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    expected = torch.stack([mixing_by_loops(mixing, config, row, 1.0) for row in x])
    assert_same_with_gradients(mixing(x), expected, list(mixing.parameters()))


def test_the_model_is_the_siamese_stack_of_the_paper() -> None:
    model, batch = build(num_layers=3), double_batch(3)
    connection = model.stack.connection
    tokens = model.tokens(batch).x
    x = y = tokens
    for number, layer in enumerate(model.stack.layers):
        _, mixing, network = layer.sublayers[0]
        update = network(mixing(x + connection.norms[number](y)))
        x = connection.stream_norms[number](x + update)
        y = y + update
    torch.testing.assert_close(model(batch), model.head(x + connection.out_norm(y)))


def test_the_skip_within_a_layer_adds_the_mixed_tokens() -> None:
    model = build(inner_skip=True, num_layers=1, connection={"kind": "identity"})
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    (first_norm, mixing), (second_norm, network) = model.stack.layers[0].sublayers
    z = x + mixing(first_norm(x))
    torch.testing.assert_close(model.stack(x), model.stack.norm(z + network(second_norm(z))))


@pytest.mark.parametrize("num_heads", [2, 4])
def test_permutations_of_blocks_make_the_mixing_of_rankmixer(num_heads) -> None:
    tokens, dim = 3, 8
    size = dim // num_heads
    x = torch.randn(2, tokens, dim)
    expected = x.view(2, tokens, num_heads, size).transpose(1, 2).reshape(2, tokens, dim)
    mixing = UniMixing(parse(dim=dim, block_size=size, matrices={"kind": "free"}), tokens)
    order = torch.arange(tokens * num_heads).view(tokens, num_heads).T.flatten()
    with torch.no_grad():
        mixing.local_matrices.weight.copy_(torch.eye(size))
        mixing.global_matrix.weight.copy_(torch.eye(tokens * num_heads)[order])
    torch.testing.assert_close(mixing(x), expected)


def test_a_low_temperature_makes_logits_a_permutation() -> None:
    """With as many heads as tokens RankMixer's permutation is symmetric, as the paper asks."""
    tokens, dim = 4, 8
    x = torch.randn(2, tokens, dim)
    expected = x.view(2, tokens, tokens, 2).transpose(1, 2).reshape(2, tokens, dim)
    low = {"start_temperature": 0.05, "end_temperature": 0.05}
    mixing = UniMixing(parse(dim=dim, block_size=2, matrices=low), tokens)
    order = torch.arange(tokens * tokens).view(tokens, tokens).T.flatten()
    with torch.no_grad():
        mixing.local_matrices.weight.copy_(torch.eye(2))
        mixing.global_matrix.weight.copy_(torch.eye(tokens * tokens)[order])
    torch.testing.assert_close(mixing(x), expected, rtol=0, atol=1e-5)


def temperatures(model: nn.Module) -> list[float]:
    return [layer.sublayers[0][1].matrices.temperature().item() for layer in model.stack.layers]


def test_the_temperature_falls_with_training_batches_only() -> None:
    model = build(num_layers=2, matrices={"temperature_steps": 4})
    batch = double_batch(2)
    seen = []
    for _ in range(6):
        seen.append(temperatures(model))
        model.train()(batch)
        model.eval()(batch)
    expected = [[t, t] for t in (1.0, 0.7625, 0.525, 0.2875, 0.05, 0.05)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))


def test_a_training_batch_is_mixed_at_the_temperature_before_it() -> None:
    config = parse(matrices={"end_temperature": 0.5, "temperature_steps": 2})
    mixing = UniMixing(config, num_tokens=3).double().train()
    nn.init.normal_(mixing.global_matrix.weight)
    nn.init.normal_(mixing.local_matrices.weight)
    row = torch.randn(3, 4, dtype=torch.float64)
    for temperature in (1.0, 0.75, 0.5, 0.5):
        expected = mixing_by_loops(mixing, config, row, temperature)
        torch.testing.assert_close(mixing(row.unsqueeze(0))[0], expected)


def test_the_temperature_is_saved_with_the_weights() -> None:
    model, batch = build(matrices={"temperature_steps": 3}), double_batch(3)
    for _ in range(2):
        model.train()(batch)
    other = build(matrices={"temperature_steps": 3})
    other.load_state_dict(model.state_dict())
    assert temperatures(other) == temperatures(model) != temperatures(build())
    torch.testing.assert_close(other.eval()(batch), model.eval()(batch))


def test_a_compiled_model_moves_its_temperature() -> None:
    torch._dynamo.reset()
    mixing = UniMixing(parse(matrices={"temperature_steps": 4}), num_tokens=3).train()
    compiled = torch.compile(mixing, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 4)
    for _ in range(3):
        compiled(x).sum().backward()
    assert mixing.matrices.steps == 3
    torch.testing.assert_close(mixing.eval()(x), compiled.eval()(x))


def test_mixing_in_bfloat16_keeps_its_matrices_in_float32() -> None:
    mixing = UniMixing(parse(), num_tokens=3).eval()
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within, between = mixing.matrices(mixing.local_matrices(), mixing.global_matrix())
        mixed = mixing(x)
    assert within.dtype == between.dtype == torch.float32
    torch.testing.assert_close(mixed.float(), mixing(x), rtol=0, atol=0.02)


def test_lite_has_fewer_parameters() -> None:
    """Of 48 blocks of 4: 48 * 16 + 48^2 parameters, or 2 * 16 + 48 * 2 + 2 * 48 * 5."""

    def count(**settings) -> int:
        mixing = UniMixing(parse(dim=64, block_size=4, **settings), num_tokens=3)
        return sum(p.numel() for p in mixing.parameters())

    lite = LITE | {"global_matrix": {"kind": "low_rank", "rank": 5}}
    assert count() == 768 + 2304
    assert count(**lite) == 32 + 96 + 480
    assert count(local_matrices={"kind": "shared"}) == 16 + 2304


def test_a_rank_beyond_the_number_of_blocks_is_that_number() -> None:
    mixing = UniMixing(parse(global_matrix={"kind": "low_rank"}), num_tokens=3)
    assert mixing.global_matrix.left.shape == (1, 6, 6)


@pytest.mark.parametrize("settings", [{}, LITE], ids=["full", "lite"])
def test_starting_values_have_the_asked_deviation(settings) -> None:
    wide = {"dim": 64, "block_size": 16, "matrices": {"init_std": 0.1}}
    mixing = UniMixing(parse(**settings | wide), num_tokens=30)
    for part in (mixing.local_matrices, mixing.global_matrix):
        assert 0.08 < part().std() < 0.12


def test_blocks_must_fill_the_tokens() -> None:
    message = (
        r"block_size must divide tokens \* dim; got block_size=5, 3 tokens, dim=4; "
        r"sizes that do: 1, 2, 3, 4, 6, 12$"
    )
    with pytest.raises(ValueError, match=message):
        build(block_size=5)
