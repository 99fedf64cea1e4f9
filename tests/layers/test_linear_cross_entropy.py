"""Cross-entropy by chunks against torch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rankloom.layers import linear_cross_entropy as module
from rankloom.layers.linear_cross_entropy import linear_cross_entropy

ROWS, CLASSES, DIM = 70, 11, 5


def make(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, DIM, generator=generator, dtype=dtype) * scale
    weight = torch.randn(CLASSES, DIM, generator=generator, dtype=dtype)
    bias = torch.randn(CLASSES, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (ROWS,), generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


@pytest.mark.parametrize("chunk", [1, 2 * CLASSES, 33 * CLASSES, 2**20])
@pytest.mark.parametrize(("biased", "smoothing"), [(True, 0.0), (False, 0.0), (True, 0.3)])
def test_loss_and_gradients_are_those_of_cross_entropy(
    chunk: int, biased: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_CHUNK", chunk)
    x, weight, bias, targets = make()
    leaves = (x, weight, bias) if biased else (x, weight)
    own = linear_cross_entropy(
        x, weight, targets, bias if biased else None, label_smoothing=smoothing
    )
    logits = x @ weight.T + (bias if biased else 0)
    reference = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(own, reference)
    torch.testing.assert_close(
        torch.autograd.grad(3 * own, leaves), torch.autograd.grad(3 * reference, leaves)
    )


def test_it_is_exact_where_the_target_is_all_but_impossible() -> None:
    x, weight, _, targets = make(torch.float32, scale=200.0)
    own = linear_cross_entropy(x, weight, targets)
    reference = functional.cross_entropy((x @ weight.T).double(), targets)
    assert reference > 200  # probabilities of e-200 are zeros in float32
    torch.testing.assert_close(own.double(), reference, rtol=1e-5, atol=0)


def test_no_rows_give_zero_and_zero_gradients() -> None:
    _, weight, _, _ = make()
    x = torch.empty(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_bfloat16_products_have_float32_losses_and_gradients() -> None:
    x, weight, bias, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets, bias)
    loss.backward()
    reference = functional.cross_entropy(functional.linear(x, weight, bias), targets)
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=0.02, atol=0)
    expected = torch.autograd.grad(reference, (x, weight, bias))
    for leaf, gradient in zip((x, weight, bias), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=0.05, atol=2e-3)


def test_without_gradients_only_the_loss_is_made() -> None:
    x, weight, _, targets = make()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(x, weight, targets)
    assert not loss.requires_grad
    assert counter.get_total_flops() == 2 * ROWS * CLASSES * DIM  # one product
    torch.testing.assert_close(loss, functional.cross_entropy(x @ weight.T, targets).detach())
