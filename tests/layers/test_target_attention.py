import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.mlp import Dice
from rankloom.layers.target_attention import TargetAttention, masked_softmax

LENGTHS = [4, 0, 1, 3]


def build(**settings) -> TargetAttention:
    unit = TargetAttention(3, **({"hidden": (5, 4)} | settings)).double()
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.5)
    return unit


def rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets, keys, values and mask of left-padded rows; padding is not zero here."""
    mask = torch.arange(4) >= 4 - torch.tensor(LENGTHS).unsqueeze(1)
    drawn = [torch.randn(*shape, dtype=torch.double) for shape in ((4, 3), (4, 4, 3), (4, 4, 6))]
    return *(x.requires_grad_() for x in drawn), mask


def dice_by_loops(layer: Dice, x: Tensor) -> Tensor:
    normal = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-8).sqrt()
    p = torch.sigmoid(normal)
    return p * x + (1 - p) * layer.alpha * x


def weights_by_loops(unit: TargetAttention, target: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Every pair by itself through the undivided first layer; all real pairs in one batch."""
    places = [(i, j) for i in range(len(mask)) for j in range(mask.shape[1]) if mask[i, j]]
    pairs = []
    for i, j in places:
        t, k = target[i], keys[i, j]
        pairs.append(torch.cat([t, k, t - k, t * k]))
    x = torch.stack(pairs) @ unit.first.weight.T + unit.first.bias
    for layer in unit.layers:
        activation = layer.activation
        x = dice_by_loops(activation, x) if isinstance(activation, Dice) else activation(x, None)
        x = x @ layer.linear.weight.T + layer.linear.bias
    weights = torch.zeros(mask.shape, dtype=torch.double)
    for (i, j), score in zip(places, x[:, 0], strict=True):
        weights[i, j] = score
    return weights


@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
@pytest.mark.parametrize("softmax", [False, True])
def test_it_equals_the_formula_pair_by_pair(activation: str, softmax: bool) -> None:
    unit = build(activation=activation, softmax=softmax)
    target, keys, values, mask = rows()
    scores = weights_by_loops(unit, target, keys, mask)
    expected = []
    for i, length in enumerate(LENGTHS):
        total = torch.zeros(6, dtype=torch.double)
        real = scores[i, 4 - length :]
        for j, weight in enumerate(real.softmax(0) if softmax else real):
            total = total + weight * values[i, 4 - length + j]
        expected.append(total)
    outputs = [unit(target, keys, values, mask), torch.stack(expected)]
    torch.testing.assert_close(*outputs)
    assert not outputs[0][1].any()  # no events
    weights = torch.randn_like(outputs[0])
    inputs = [target, keys, values, *unit.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in outputs]
    for actual, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected_gradient)


def test_one_event_worked_by_hand() -> None:
    """t = 2, k = 3: the unit reads 2, 3, -1 and 6."""
    unit = TargetAttention(1, hidden=())
    with torch.no_grad():
        unit.first.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        unit.first.bias.fill_(0.5)
    target, keys = torch.tensor([[2.0]]), torch.tensor([[[3.0]]])
    mask = torch.tensor([[True]])
    assert unit.weights(target, keys, mask).item() == 2 + 30 - 100 + 6000 + 0.5
    assert unit(target, keys, torch.tensor([[[1.0, -1.0]]]), mask).tolist() == [[5932.5, -5932.5]]


def test_padding_changes_nothing() -> None:
    unit = build(activation="dice", softmax=True)
    target, keys, values, mask = rows()
    before = unit(target, keys, values, mask)
    statistics = unit.layers[0].activation.running_mean.clone()
    noise = torch.randn_like(keys).masked_fill(mask.unsqueeze(2), 0)
    unit.layers[0].activation.running_mean.zero_()
    torch.testing.assert_close(unit(target, keys + noise, values, mask), before)
    torch.testing.assert_close(unit.layers[0].activation.running_mean, statistics)


@pytest.mark.parametrize("activation", ["relu", "dice"])
def test_dropout_is_of_training_only(activation: str) -> None:
    unit = build(activation=activation, dropout=0.5)
    arguments = rows()
    assert not torch.equal(unit(*arguments), unit(*arguments))
    unit.eval()
    assert torch.equal(unit(*arguments), unit(*arguments))


def test_softmax_over_no_events_is_finite() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weights = masked_softmax(scores, torch.tensor([[False, False], [False, True]]))
    assert weights.tolist() == [[0, 0], [0, 1]]
    weights.sum().backward()
    assert scores.grad.isfinite().all()
