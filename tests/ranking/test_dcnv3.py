from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import task_losses
from rankloom.ranking.dcnv3 import DCNv3, DCNv3Config
from rankloom.schema import Schema

SCHEMA = example_schema(num_tasks=2)
ONE_FIELD = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
AFFINE = {"second_half": {"kind": "affine"}}


def build(schema: Schema = SCHEMA, **settings) -> DCNv3:
    sizes = {
        "embedding_dim": 4,
        "deep": {"num_layers": 2},
        "shallow": {"num_layers": 2},
    }
    model = DCNv3(parse_config(DCNv3Config, sizes | settings, "test"), schema)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def cross(tower: nn.Sequential) -> nn.Module:
    return tower[0]


@pytest.mark.parametrize("tower", ["deep", "shallow"])
def test_two_layers_worked_by_hand(tower: str) -> None:
    """x = (2, 3) in every layer's H = x[0] - x[1], whose mask without norm is relu(H) = 0."""
    plain = {"num_layers": 2, "second_half": {"kind": "self_mask", "layer_norm": False}}
    model = build(ONE_FIELD, embedding_dim=2, **{tower: plain})
    layers = cross(getattr(model, tower)).layers
    with torch.no_grad():
        for layer in layers:
            layer.linear.weight.copy_(torch.tensor([[1.0, -1.0]]))
            layer.bias.copy_(torch.tensor([0.0, 1.0]))
    # Layer 1: H = -1, factors (-1, 0 + 1): x = (2, 3) * (-1, 1) + (2, 3) = (0, 6).
    # Layer 2: H = -6, factors (-6, 1): (0, 6) or (2, 3) times them, plus (0, 6).
    expected = {"deep": [[0.0, 12.0]], "shallow": [[-12.0, 9.0]]}
    assert cross(getattr(model, tower))(torch.tensor([[2.0, 3.0]])).tolist() == expected[tower]


def slow_logits(model: DCNv3, batch: Batch, heads: int) -> tuple[Tensor, Tensor]:
    """Both towers, row by row, head by head, unit by unit."""
    towers = []
    for tower, exponential in ((model.deep, True), (model.shallow, False)):
        rows = []
        for row in model.embedding(batch).unbind():  # [fields, dim]
            found = []
            for head in range(heads):
                piece = row.shape[1] // heads
                own = row[:, head * piece : (head + 1) * piece]
                cut = (piece + 1) // 2
                first = [own[f, d] for f in range(len(own)) for d in range(cut)]
                second = [own[f, d] for f in range(len(own)) for d in range(cut, piece)]
                found.append(slow_tower(first, second, tower, exponential))
            rows.append(torch.stack(found).mean(0))
        towers.append(torch.stack(rows))
    return towers[0], towers[1]


def slow_tower(
    first: list[Tensor], second: list[Tensor], tower: nn.Sequential, exponential: bool
) -> Tensor:
    x0 = torch.stack(first + second)
    x = x0
    for layer in cross(tower).layers:
        half = [weights.dot(x) for weights in layer.linear.weight]
        if isinstance(layer.norm, nn.BatchNorm1d):
            half = [
                (h - layer.norm.running_mean[i])
                / (layer.norm.running_var[i] + layer.norm.eps).sqrt()
                * layer.norm.weight[i]
                + layer.norm.bias[i]
                for i, h in enumerate(half)
            ]
        masked = slow_second_half(half[: len(second)], layer.second_half)
        left = x if exponential else x0
        x = torch.stack(
            [left[i] * (factor + layer.bias[i]) + x[i] for i, factor in enumerate(half + masked)]
        )
    output = tower[1]
    return torch.stack([w.dot(x) + b for w, b in zip(output.weight, output.bias, strict=True)])


def slow_second_half(half: list[Tensor], part: nn.Module) -> list[Tensor]:
    if hasattr(part, "scale"):
        return [part.scale[i] * h + part.shift[i] for i, h in enumerate(half)]
    values = torch.stack(half)
    deviation = (values.var(unbiased=False) + part.norm.eps).sqrt()
    normed = (values - values.mean()) / deviation * part.norm.weight + part.norm.bias
    return [h * n if n > 0 else h * 0 for h, n in zip(half, normed, strict=True)]


@pytest.mark.parametrize(
    ("settings", "heads"),
    [
        ({}, 1),
        ({"embedding_dim": 6, "num_heads": 3, "shallow": {"num_layers": 1} | AFFINE}, 3),
        ({"embedding_dim": 3}, 1),
        ({"embedding_dim": 10, "num_heads": 2, "deep": {"batch_norm": True} | AFFINE}, 2),
    ],
    ids=["plain", "heads", "odd", "odd-heads"],
)
def test_forward_and_gradient_equal_loops(settings, heads: int) -> None:
    model, batch = build(**settings).eval(), random_batch(SCHEMA, 4)
    found = []
    deep, shallow = slow_logits(model, batch, heads)
    for logits in (model(batch), (deep + shallow) / 2):
        model.zero_grad()
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for actual, expected in zip(*found, strict=True):
        scale = expected.abs().max().clamp(min=1).item()
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)


def test_one_layer_is_the_same_in_both_towers() -> None:
    one = {"num_layers": 1, "dropout": 0.0}
    model = build(deep=one, shallow=one)
    model.shallow.load_state_dict(model.deep.state_dict())
    deep, shallow = model._logits(random_batch(SCHEMA, 5))
    torch.testing.assert_close(deep, shallow)


def test_order_grows_exponentially_and_linearly() -> None:
    """Scaling x by t scales a tower without biases and norms like the order's power of t."""
    settings = {"num_layers": 3, "dropout": 0.0} | AFFINE
    model = build(ONE_FIELD, deep=settings, shallow=settings).double()
    with torch.no_grad():
        for tower in (model.deep, model.shallow):
            for layer in cross(tower).layers:
                layer.bias.zero_()
                layer.second_half.shift.zero_()
    x, scale = torch.randn(1, 4, dtype=torch.float64), 1e6
    for tower, order in ((model.deep, 8), (model.shallow, 4)):
        growth = cross(tower)(scale**2 * x) / cross(tower)(scale * x)
        torch.testing.assert_close(
            growth / scale**order, torch.ones_like(growth), rtol=1e-3, atol=0
        )


def test_tri_bce_weighs_each_tower_by_its_excess_and_stops_there() -> None:
    model, batch = build(), random_batch(SCHEMA, 4)
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    batch = replace(batch, label_mask=mask, weight=torch.tensor([1.0, 2.0, 0.5, 3.0]))
    deep = torch.randn(4, 2, requires_grad=True)
    # The shallow tower scores task 0 best of all: its weight there is zero.
    right = 4 * batch.labels - 2
    shallow = torch.stack([right[:, 0], torch.randn(4)], dim=1).requires_grad_()
    model._logits = lambda _: (deep, shallow)
    loss = model.loss(batch)
    loss.total.backward()
    actual = [deep.grad.clone(), shallow.grad.clone()]

    deep.grad = shallow.grad = None
    losses = [task_losses(z, batch) for z in ((deep + shallow) / 2, deep, shallow)]
    mean_loss, deep_loss, shallow_loss = losses
    assert shallow_loss[0] < mean_loss[0]
    total = torch.zeros(())
    for task in range(2):
        total = total + mean_loss[task]
        for tower_loss in (deep_loss, shallow_loss):
            weight = max(0.0, tower_loss[task].item() - mean_loss[task].item())
            total = total + weight * tower_loss[task]
    total.backward()
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(actual, [deep.grad, shallow.grad])
    for name, expected in zip(("mean", "deep", "shallow"), losses, strict=True):
        torch.testing.assert_close(loss.parts[name], expected.sum())


def test_loss_reaches_every_parameter() -> None:
    model, batch = build(deep=AFFINE | {"batch_norm": True}), random_batch(SCHEMA, 64)
    model.loss(batch).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("settings", [{}, {"deep": AFFINE, "embedding_dim": 6, "num_heads": 2}])
def test_bfloat16_stays_close(settings) -> None:
    model, batch = build(**settings).eval(), random_batch(SCHEMA, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = model(batch), model.loss(batch)
    torch.testing.assert_close(logits.float(), model(batch), rtol=0.1, atol=0.1)
    assert loss.total.dtype == torch.float32


@pytest.mark.parametrize(("dim", "heads"), [(6, 4), (4, 4)])
def test_heads_must_leave_two_dimensions_each(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 2; got embedding_dim={dim}, num_heads=4"):
        build(embedding_dim=dim, num_heads=heads)
