import pytest
import torch
from torch import Tensor, nn

from rankloom.layers import chunked
from rankloom.layers.chunked import in_chunks, linear_over


@pytest.fixture(params=[1, 20, 10_000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One row at a time, a few, and all at once."""
    monkeypatch.setattr(chunked, "CPU_CHUNK", request.param)
    monkeypatch.setattr(chunked, "CACHE_CHUNK", request.param)
    return int(request.param)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_layer_over_all_features_forward_and_gradient(chunk: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(6, dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(6, 3, bias=bias).double()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    held: list[int] = []

    def features(rows: Tensor) -> Tensor:
        held.append(len(rows))
        return torch.tanh(rows @ weight.T) * scale

    fast = linear_over(layer, features, [weight, scale], x)
    assert max(held) == min(7, max(1, chunk // 6))
    slow = layer(torch.tanh(x @ weight.T) * scale)
    torch.testing.assert_close(fast, slow)
    inputs = [x, weight, scale, *layer.parameters()]
    actual = torch.autograd.grad(fast.square().sum(), inputs)
    expected = torch.autograd.grad(slow.square().sum(), inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_no_rows() -> None:
    layer = nn.Linear(2, 3)
    x = torch.empty(0, 2, requires_grad=True)
    out = linear_over(layer, lambda rows: rows.square(), [], x)
    assert out.shape == (0, 3)
    out.sum().backward()
    assert x.grad is not None
    assert not layer.weight.grad.any()


def test_autocast_counts_in_both_passes() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 8, requires_grad=True)
    layer = nn.Linear(40, 3)
    x = torch.randn(50, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        fast = linear_over(layer, lambda rows: torch.relu(rows @ weight.T), [weight], x)
        slow = layer(torch.relu(x @ weight.T))
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast, slow, rtol=0.02, atol=0.02)
    actual = torch.autograd.grad(fast.float().sum(), [x, weight, *layer.parameters()])
    expected = torch.autograd.grad(slow.float().sum(), [x, weight, *layer.parameters()])
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_any_function_in_chunks_equals_it_forward_and_gradient(chunk: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(7, 1, dtype=torch.float64)
    held: list[int] = []

    def function(rows: Tensor, scales: Tensor) -> Tensor:
        held.append(len(rows))
        return network(rows) * scales

    parameters = list(network.parameters())
    fast = in_chunks(function, parameters, 6, x, scale)
    assert max(held) == min(7, max(1, chunk // 6))
    slow = network(x) * scale
    torch.testing.assert_close(fast, slow)
    actual = torch.autograd.grad(fast.square().sum(), [x, *parameters])
    expected = torch.autograd.grad(slow.square().sum(), [x, *parameters])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_any_function_in_chunks_of_no_rows() -> None:
    layer = nn.Linear(2, 3)
    x = torch.empty(0, 2, requires_grad=True)
    out = in_chunks(layer, list(layer.parameters()), 3, x)
    assert out.shape == (0, 3)
    out.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None


def test_any_function_in_chunks_under_autocast() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 3)
    x = torch.randn(50, 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        fast = in_chunks(layer, list(layer.parameters()), 40, x)
        slow = layer(x)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast, slow)
    actual = torch.autograd.grad(fast.float().square().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(slow.float().square().sum(), [x, *layer.parameters()])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_frozen_parameters_need_no_gradient() -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(6, 4), torch.randn(6, requires_grad=True)
    layer = nn.Linear(6, 3)
    x = torch.randn(7, 4, requires_grad=True)
    fast = linear_over(layer, lambda rows: (rows @ weight.T) * scale, [weight, scale], x)
    slow = layer((x @ weight.T) * scale)
    actual = torch.autograd.grad(fast.square().sum(), [x, scale])
    expected = torch.autograd.grad(slow.square().sum(), [x, scale])
    torch.testing.assert_close(actual, expected)
