import pytest
import torch
from torch import Tensor, nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.masknet import MaskNet, MaskNetConfig, _FieldNorm, _MaskBlock

SCHEMA = example_schema(num_tasks=2)
SERIAL = {"kind": "serial", "hidden": [6, 5]}
PARALLEL = {"kind": "parallel", "num_blocks": 3, "block_width": 4, "hidden": [6]}

both = pytest.mark.parametrize("structure", [SERIAL, PARALLEL], ids=["serial", "parallel"])


def build(structure, **settings) -> MaskNet:
    values = {"embedding_dim": 3, "reduction": 1.5, "structure": structure} | settings
    model = MaskNet(parse_config(MaskNetConfig, values, "test"), SCHEMA)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def block_by_hand(block: _MaskBlock, embedded: Tensor, x: Tensor) -> Tensor:
    first, _, last = block.mask.layers
    mask = last.weight @ torch.relu(first.weight @ embedded + first.bias) + last.bias
    hidden = block.hidden.weight @ (mask * x)
    return torch.relu(normalised(hidden, block.norm.weight, block.norm.bias))


def by_loops(model: MaskNet, fields: Tensor, kind: str) -> Tensor:
    """The equations for one row of fields [fields, dim]."""
    embedded, x = fields.flatten(), fields.flatten()
    if isinstance(model.norm, _FieldNorm):
        norm = model.norm
        x = torch.cat([normalised(e, norm.weight[i], norm.bias[i]) for i, e in enumerate(fields)])
    if kind == "serial":
        for block in model.blocks.blocks:
            x = block_by_hand(block, embedded, x)
        return model.blocks.head(x)
    outputs = [block_by_hand(block, embedded, x) for block in model.blocks.blocks]
    return model.blocks.network(torch.cat(outputs).unsqueeze(0))[0]


@both
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_logits_and_gradients_equal_the_loops(structure, embedding_norm: bool) -> None:
    model = build(structure, embedding_norm=embedding_norm).double()
    batch = random_batch(SCHEMA, 4)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    rows = [by_loops(model, row, structure["kind"]) for row in model.embedding(batch)]
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_mask_block_worked_by_hand() -> None:
    settings = parse_config(MaskNetConfig, {"structure": SERIAL}, "test").structure
    block = _MaskBlock(settings, 1.0, width=1, in_features=2, out_features=2)
    first, _, last = block.mask.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        last.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 7.0]]))
        last.bias.copy_(torch.tensor([0.0, 1.0]))
        block.hidden.weight.copy_(torch.eye(2))
    # Embedding 3: hidden (3, 0), mask (6, 1); masked (6, 20); normalised (-1, 1); ReLU (0, 1).
    out = block(torch.tensor([[3.0]]), torch.tensor([[1.0, 20.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 1.0]]), rtol=0, atol=1e-5)


def test_the_reduction_widens_the_masks_hidden_layers() -> None:
    model = build(SERIAL, reduction=1.5)
    width = model.embedding.width
    hidden = [block.mask.layers[0].out_features for block in model.blocks.blocks]
    assert hidden == [int(1.5 * width), 9]
    tiny = build(SERIAL, reduction=0.01)
    assert [block.mask.layers[0].out_features for block in tiny.blocks.blocks] == [1, 1]


@both
def test_masks_at_one_leave_the_normed_embeddings_as_they_are(structure) -> None:
    model, batch = build(structure), random_batch(SCHEMA, 5)
    with torch.no_grad():
        for block in model.blocks.blocks:
            block.mask.layers[-1].weight.zero_()
            block.mask.layers[-1].bias.fill_(1.0)
    first = model.blocks.blocks[0]
    vectors = model.embedding(batch)
    x = model.norm(vectors).flatten(1)
    expected = torch.relu(first.norm(first.hidden(x)))
    torch.testing.assert_close(first(vectors.flatten(1), x), expected)


def test_masks_read_the_embeddings_before_their_norm() -> None:
    """Scaling all embeddings moves the masks, although the norm takes the scale out again."""
    model, batch = build(SERIAL), random_batch(SCHEMA, 5)
    vectors = 10 * model.embedding(batch)
    torch.testing.assert_close(model.norm(3 * vectors), model.norm(vectors), rtol=1e-3, atol=1e-3)
    mask = model.blocks.blocks[1].mask
    assert (mask(3 * vectors.flatten(1)) - mask(vectors.flatten(1))).abs().max() > 0.1


def test_dropout_and_activation_reach_the_blocks() -> None:
    model = build(SERIAL | {"dropout": 0.5, "activation": "tanh"})
    for block in model.blocks.blocks:
        assert isinstance(block.activation, nn.Tanh)
        assert isinstance(block.dropout, nn.Dropout)
        assert block.dropout.p == 0.5


def test_under_autocast_it_stays_close() -> None:
    for structure in (SERIAL, PARALLEL):
        model, batch = build(structure), random_batch(SCHEMA, 20)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch)
        assert rounded.dtype == torch.bfloat16
        error = (rounded.float() - model(batch)).abs().max() / model(batch).abs().max()
        assert 0 < error < 0.1


def test_serial_blocks_need_a_width() -> None:
    with pytest.raises(ValueError, match=r"structure\.hidden.*at least 1 item"):
        build({"kind": "serial", "hidden": []})


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'stacked'.*serial, parallel"):
        build({"kind": "stacked"})


# Tables that make as many embedding rows and fields as BARS' data sets have; their padding row is
# shared.
FRAPPE = {"item": 889} | {f"c{i}": 501 for i in range(9)}
MOVIELENS_TAG = {"item": 90_000, "c0": 151, "c1": 90}
AVAZU = {"item": 1_298_578} | {f"c{i}": 2 for i in range(21)}


@pytest.mark.parametrize(
    ("tables", "structure", "settings", "published"),
    [
        (FRAPPE, {"kind": "parallel", "num_blocks": 3, "block_width": 50}, (2.0, False), 571_691),
        (MOVIELENS_TAG, {"kind": "serial"}, (4.0, False), 2_624_541),
        (AVAZU, {"kind": "serial"}, (2.0, True), 14_585_891),
    ],
    ids=["Frappe_x1", "MovielensLatest_x1", "Avazu_x1"],
)
def test_parameter_counts_are_the_published_ones(
    tables, structure, settings: tuple[float, bool], published: int
) -> None:
    """BARS: they also tell which of its models normalise the embeddings."""
    reduction, embedding_norm = settings
    plain = example_schema(
        num_categorical=len(tables) - 1, num_numeric=0, sequences=False, vectors=False
    )
    schema = plain.model_copy(update={"tables": tables})
    values = {"embedding_dim": 10, "reduction": reduction, "embedding_norm": embedding_norm}
    config = parse_config(MaskNetConfig, values | {"structure": structure}, "test")
    assert sum(p.numel() for p in MaskNet(config, schema).parameters()) == published
