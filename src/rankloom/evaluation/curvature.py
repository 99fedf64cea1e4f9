"""The sharpest curvature of a loss: its Hessian's eigenvalue of largest magnitude.

Power iteration, v <- H v / |H v| with the eigenvalue v^T H v, where

    H v = (g(W + e v) - g(W - e v)) / 2 e,    g the gradient of the loss, e a thousandth of |W|

Differentiating twice would give H v without e, but not for every model: some parts have no second
derivative (pooled histories, fused attention), norms of padding have one that is NaN, and a
function that says it can be differentiated once is left out without an error.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rankloom.evaluation.landscape_loss import MovedLoss, random_direction

START = -1
"""Number of the direction that the iteration starts from; those of curves count from 0."""
TOLERANCE = 1e-3
"""Relative change below which the eigenvalue is taken to be found."""
STEP = 1e-3
"""Step of the differences, in lengths of all weights that move."""


def largest_eigenvalue(
    loss: MovedLoss, moved: Mapping[str, nn.Parameter], *, seed: int = 0, num_iterations: int = 30
) -> float:
    """The eigenvalue of largest magnitude of the Hessian in the parameters that move.

    Args:
        loss: the loss.
        moved: the parameters.
        seed: seed of the vector that the iteration starts from.
        num_iterations: most iterations; they end when the value changes by less than a thousandth.

    Returns:
        The eigenvalue; NaN where a gradient is not finite.
    """
    weights = {name: weight.detach() for name, weight in moved.items()}
    v = [random_direction(weight, seed, START, name) for name, weight in weights.items()]
    value = math.nan
    for _ in range(num_iterations):
        length = _length(v)
        if length == 0:  # a Hessian that is zero along v
            return 0.0
        v = [part / length for part in v]
        product = _hessian_product(loss, weights, v)
        before, value = value, float(sum((a * b).sum() for a, b in zip(v, product, strict=True)))
        if abs(value - before) <= TOLERANCE * abs(value) or not math.isfinite(value):
            break
        v = product
    return value


def _hessian_product(
    loss: MovedLoss, weights: Mapping[str, Tensor], v: Sequence[Tensor]
) -> list[Tensor]:
    step = STEP * _length(list(weights.values())) or STEP
    after, before = (
        _gradient(
            loss,
            {
                name: weight + sign * step * part
                for (name, weight), part in zip(weights.items(), v, strict=True)
            },
        )
        for sign in (1, -1)
    )
    return [(a - b) / (2 * step) for a, b in zip(after, before, strict=True)]


def _gradient(loss: MovedLoss, weights: Mapping[str, Tensor]) -> list[Tensor]:
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for index in range(len(loss)):
        with torch.enable_grad():
            leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
            value = loss.part(index, leaves)
            if not value.requires_grad:  # nothing that moves is used
                continue
            parts = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        total = [a + b for a, b in zip(total, parts, strict=True)]
    return total


def _length(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())
