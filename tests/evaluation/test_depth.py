import math

import pytest
import torch
from torch import Tensor

from rankloom.evaluation.depth import (
    FINE_BINS,
    GateSums,
    combined,
    cosine_sums,
    gate_sums,
    layer_gates,
    layer_weights,
    moments,
    ridge_r_squared,
    weight_sums,
)


def test_weights_worked_by_hand() -> None:
    # Two rows of two tokens, one head, two blocks; the first row's first token is padding.
    weights = torch.tensor([[[[9.0, -9.0]], [[1.0, -0.2]]], [[[3.0, 0.4]], [[-1.0, 0.1]]]])
    real = torch.tensor([[False, True], [True, True]])
    found = layer_weights(4, weight_sums(weights, real))
    assert found.layer == 4
    assert found.mean == pytest.approx((1.0, 0.1))
    assert found.negative == pytest.approx(2 / 6)
    everything = layer_weights(4, weight_sums(weights))
    assert everything.mean == pytest.approx((3.0, -2.175))
    assert everything.negative == pytest.approx(3 / 8)


def test_heads_count_alike_and_batches_add_up() -> None:
    weights = torch.randn(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    whole = layer_weights(0, weight_sums(weights))
    assert whole.mean == pytest.approx(weights.mean((0, 1, 2)).tolist())
    parts = combined(combined(None, weight_sums(weights[:2])), weight_sums(weights[2:]))
    assert layer_weights(0, parts).mean == pytest.approx(whole.mean)
    assert layer_weights(0, parts).negative == pytest.approx(whole.negative)


def test_no_tokens_give_no_numbers() -> None:
    real = torch.zeros(2, 3, dtype=torch.bool)
    weights = layer_weights(0, weight_sums(torch.ones(2, 3, 1, 2), real))
    gates = layer_gates(0, gate_sums(torch.ones(2, 3, 4), real))
    values = (*weights.mean, weights.negative, gates.mean, *gates.deciles, *gates.histogram)
    assert all(math.isnan(value) for value in values)


def test_gates_worked_by_hand() -> None:
    # Four gates of .125 in the third of twenty bins, one of .975 in the last one; the rest padding.
    gates = torch.tensor([[[0.125, 0.125], [0.125, 0.125], [0.5, 0.5]]]).repeat(1, 1, 1)
    last = torch.tensor([[[0.975]]])
    real = torch.tensor([[True, True, False]])
    found = layer_gates(1, combined(gate_sums(gates, real), gate_sums(last)))
    assert found.mean == pytest.approx((4 * 0.125 + 0.975) / 5)
    assert found.histogram[2] == pytest.approx(0.8)
    assert found.histogram[19] == pytest.approx(0.2)
    assert sum(found.histogram) == pytest.approx(1)
    assert all(0.125 <= value <= 0.126 for value in found.deciles[:8])
    assert 0.975 <= found.deciles[8] <= 0.976


def test_deciles_are_exact_to_a_thousandth() -> None:
    gates = torch.rand(40, 5, 10, generator=torch.Generator().manual_seed(1)).sqrt()
    expected = torch.quantile(gates.flatten(), torch.arange(1, 10) / 10)
    assert layer_gates(0, gate_sums(gates)).deciles == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_uniform_count_has_its_deciles_at_tenths() -> None:
    uniform = GateSums(torch.ones(FINE_BINS).double(), torch.tensor(500.0).double())
    assert layer_gates(0, uniform).deciles == pytest.approx([n / 10 for n in range(1, 10)])


def test_saturated_and_undefined_gates() -> None:
    ends = layer_gates(0, gate_sums(torch.tensor([[[0.0, 1.0]]])))
    assert (ends.histogram[0], ends.histogram[19]) == (0.5, 0.5)
    broken = layer_gates(0, gate_sums(torch.tensor([[[math.nan, 0.5]]])))
    assert math.isnan(broken.mean)
    assert broken.histogram[10] == 1


def test_cosine_worked_by_hand() -> None:
    start = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]]])
    x = torch.tensor([[[0.0, 5.0], [4.0, 3.0], [-1.0, -1.0]]])  # 0, 24 / 25, -1
    total, count = cosine_sums(x, start, torch.tensor([[True, True, False]]))
    assert (float(total), float(count)) == pytest.approx((0.96, 2))
    total, count = cosine_sums(x, start, None)
    assert (float(total), float(count)) == pytest.approx((-0.04, 3))


def test_r_squared_worked_by_hand() -> None:
    # Fitted: y = 2 x + 1 exactly. Scored: y is 1, 3, 8 at x = 0, 1, 2; found are 1, 3, 5.
    x = torch.tensor([[[0.0]], [[1.0]], [[2.0]]])
    fitted = moments(x, 2 * x + 1, None)
    scored = moments(x, torch.tensor([[[1.0]], [[3.0]], [[8.0]]]), None)
    # Errors 9; about the mean 4 the squares are 9 + 1 + 16.
    assert ridge_r_squared(fitted, scored, ridge=0.0) == pytest.approx(1 - 9 / 26)
    # With a penalty of 3 mean variances: sum of squares of x is 2, so W = 4 / (2 + 3 * 2) = .5;
    # found are 2.5, 3, 3.5 and errors 1.5^2 + 0 + 4.5^2.
    assert ridge_r_squared(fitted, scored, ridge=3.0) == pytest.approx(1 - 22.5 / 26)


def reference(x: Tensor, y: Tensor, real: Tensor, ridge: float) -> float:
    """Rows at even places against the others, residuals written out, all tokens seen in both."""
    x, y = x.double(), y.double()
    left, right, ys, errors, squares = [], [], [], 0.0, 0.0
    centres = []
    for token in range(x.shape[1]):
        there = real[::2, token]
        centres.append((x[::2, token][there].mean(0), y[::2, token][there].mean(0)))
        left.append(x[::2, token][there] - centres[-1][0])
        ys.append(y[::2, token][there] - centres[-1][1])
    joined, targets = torch.cat(left), torch.cat(ys)
    gram = joined.T @ joined
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram))
    matrix = torch.linalg.inv(gram + penalty) @ joined.T @ targets
    for token, (centre_x, centre_y) in enumerate(centres):
        there = real[1::2, token]
        right = y[1::2, token][there]
        found = (x[1::2, token][there] - centre_x) @ matrix + centre_y
        errors += float((right - found).square().sum())
        squares += float((right - right.mean(0)).square().sum())
    return 1 - errors / squares


@pytest.mark.parametrize("ridge", [1e-4, 0.5])
def test_r_squared_equals_residuals_written_out(ridge: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 3, 5, generator=generator) + 4 * torch.randn(3, 5, generator=generator)
    y = torch.tanh(x @ torch.randn(5, 4, generator=generator))
    y = y + torch.randn(y.shape, generator=generator) / 2
    real = torch.rand(60, 3, generator=generator) < 0.7
    poisoned = x.masked_fill(~real[..., None], math.nan)  # padding may hold anything
    halves = [moments(poisoned[half::2], y[half::2], real[half::2]) for half in (0, 1)]
    expected = reference(x, y, real, ridge)
    assert 0 < expected < 1
    assert ridge_r_squared(halves[0], halves[1], ridge) == pytest.approx(expected, rel=1e-9)


def test_places_of_tokens_count_for_nothing() -> None:
    """Means that differ by place are no signal: noise decodes nothing of them."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randn(400, 6, 3, generator=generator) + 50 * torch.arange(6.0)[:, None]
    x = torch.randn(400, 6, 3, generator=generator)
    found = ridge_r_squared(moments(x[::2], y[::2], None), moments(x[1::2], y[1::2], None))
    assert abs(found) < 0.05
    again = ridge_r_squared(moments(y[::2], y[::2], None), moments(y[1::2], y[1::2], None))
    assert again == pytest.approx(1, abs=1e-3)


def test_a_token_that_only_one_half_has() -> None:
    x = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(5))
    real = torch.ones(20, 2, dtype=torch.bool)
    without = real.clone()
    without[:, 0] = False
    fitted = moments(x[:20], x[:20], without)
    assert 0.9 < ridge_r_squared(fitted, moments(x[20:], x[20:], real)) <= 1


def test_r_squared_is_undefined_where_nothing_can_be_said() -> None:
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(6))
    some, constant = moments(x, x, None), moments(x, torch.full_like(x, 0.1), None)
    assert math.isnan(ridge_r_squared(some, moments(x[:0], x[:0], None)))
    assert math.isnan(ridge_r_squared(moments(x[:0], x[:0], None), some))
    assert math.isnan(ridge_r_squared(constant, constant))
    assert math.isnan(ridge_r_squared(some, moments(x * math.inf, x, None)))
    dead = moments(torch.zeros_like(x), x, None)
    assert ridge_r_squared(dead, dead) == pytest.approx(0)
