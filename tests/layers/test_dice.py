import pytest
import torch
from torch import nn

from rankloom.layers.mlp import MLP, Dice


def dice(width: int) -> Dice:
    layer = Dice(width).double()
    nn.init.normal_(layer.alpha)
    return layer


def test_worked_by_hand() -> None:
    """Mean 2 and variance 1: both rows stand one deviation from the mean."""
    layer = dice(1)
    nn.init.constant_(layer.alpha, 0.25)
    out = layer(torch.tensor([[1.0], [3.0]], dtype=torch.double))
    below = 1 / (1 + 2.718281828) + 0.25 / (1 + 1 / 2.718281828)
    above = 1 / (1 + 1 / 2.718281828) + 0.25 / (1 + 2.718281828)
    torch.testing.assert_close(out, out.new_tensor([[below], [3 * above]]))
    # A tenth of the way from 0 to the mean, and from 1 to the unbiased variance, 2.
    assert layer.running_mean.item() == pytest.approx(0.2)
    assert layer.running_var.item() == pytest.approx(1.1)


def test_evaluation_uses_the_moving_averages() -> None:
    layer = dice(3).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    x = torch.randn(5, 3, dtype=torch.double)
    p = torch.sigmoid((x - layer.running_mean) / (layer.running_var + 1e-8).sqrt())
    torch.testing.assert_close(layer(x), p * x + (1 - p) * layer.alpha * x)
    mask = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(layer(x, mask), layer(x))


def test_masked_rows_enter_no_statistics() -> None:
    """The real rows are activated as if they were alone, and gradients are theirs."""
    masked, alone = dice(3), dice(3)
    alone.load_state_dict(masked.state_dict())
    mask = torch.tensor([True, False, True, True, False, True])
    x = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    outs = masked(x, mask)[mask], alone(x[mask])
    torch.testing.assert_close(*outs)
    weights = torch.randn_like(outs[0])
    gradients = [
        torch.autograd.grad((out * weights).sum(), [x, layer.alpha])
        for out, layer in zip(outs, (masked, alone), strict=True)
    ]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(masked.running_mean, alone.running_mean)
    torch.testing.assert_close(masked.running_var, alone.running_var)
    assert not torch.allclose(masked(x, mask)[mask], masked(x)[mask])


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_one_row_has_no_statistics(rows: int, masked: bool) -> None:
    layer = dice(2)
    layer.running_mean.normal_()
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = torch.randn(rows, 2, dtype=torch.double, requires_grad=True)
    mask = None
    if masked:  # padding beside the one row
        x = torch.cat([x, torch.randn(3, 2, dtype=torch.double)])
        mask = torch.arange(len(x)) < rows
    out = layer(x, mask)
    out.sum().backward()
    assert layer.alpha.grad.isfinite().all()
    torch.testing.assert_close(out, layer.eval()(x))
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, state[name])


def test_alpha_starts_at_zero_and_one_gives_the_units_back() -> None:
    layer = Dice(4)
    assert not layer.alpha.any()
    nn.init.ones_(layer.alpha)
    x = torch.randn(7, 4)
    torch.testing.assert_close(layer(x), x)


def test_it_is_an_activation_of_any_network() -> None:
    network = MLP(3, [5, 4], out_features=1, activation="dice")
    kinds = [type(layer) for layer in network.layers]
    assert kinds == [nn.Linear, Dice, nn.Linear, Dice, nn.Linear]
    assert [layer.alpha.shape for layer in network.layers if isinstance(layer, Dice)] == [
        (5,),
        (4,),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.randn(6, 3)).isfinite().all()
