"""Codes by Sinkhorn's iteration: items take near codes, and each code about equally many items."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.layers.sinkhorn import sinkhorn

SMALLEST_SCALED = 0.003
"""Epsilon from which on all factors fit float64, and products with vectors replace logarithms: ten
times faster."""


def sinkhorn_codes(
    distances: Float[Tensor, "*groups items codes"], epsilon: float, num_steps: int
) -> Int[Tensor, "*groups items"]:
    """The code of each item under the transport plan of entropy-regularised optimal transport.

    Source: Zheng et al. (LC-Rec), ICDE 2024, arXiv:2311.09049, section III-A, equation 6, after
    Cuturi, NeurIPS 2013. The plan exp(-distance / epsilon), scaled so that every item has the same
    weight and every code too, is read at its largest code, the nearest of equal ones. As in the
    official code, distances are moved and divided first so that they run from -1 to 1 over the
    items and codes of a group, which makes epsilon free of their unit.

    Args:
        distances: to every code; items compete within their group.
        epsilon: regularisation; the smaller, the nearer to the nearest codes of equal loads.
        num_steps: steps, each a division of the rows and one of the columns.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    # In float64: at the usual epsilon, entries differ by a factor of exp(2 / 0.003).
    exact = distances.detach().double()
    if 0 in exact.shape:
        return torch.empty(exact.shape[:-1], dtype=torch.int64, device=exact.device)
    lowest, highest = exact.amin((-2, -1), keepdim=True), exact.amax((-2, -1), keepdim=True)
    half_range = ((highest - lowest) / 2).clamp(min=1e-12)
    logits = (lowest - exact) / (half_range * epsilon)
    if epsilon < SMALLEST_SCALED:
        # `sinkhorn` divides columns first; the official code rows.
        return _largest(sinkhorn(logits.log_softmax(-1), num_steps), exact)
    logits = logits - logits.amax(-1, keepdim=True)
    # Every row and every column has a largest entry of one, so that no sum vanishes.
    plan = (logits - logits.amax(-2, keepdim=True)).exp()
    column_scale = torch.ones_like(plan[..., :1, :].mT)  # [groups, codes, 1]
    # With items that weigh one each, a code's share is their number over that of the codes. Another
    # one would only be a factor, but one that grows with every step.
    share = plan.shape[-2] / plan.shape[-1]
    for _ in range(num_steps):
        row_scale = (plan @ column_scale).reciprocal()  # [groups, items, 1]
        column_scale = share * (plan.mT @ row_scale).reciprocal()
    # What a row is multiplied with does not move its largest entry.
    return _largest(plan * column_scale.mT, exact)


def _largest(plan: Tensor, distances: Tensor) -> Tensor:
    """The code with the largest entry of each row; of equal ones, the nearest."""
    # DIFF: an item that is alone in several columns has the same entry in each, but for rounding,
    # which is what the official code lets decide. This takes the nearest of these codes.
    near = plan >= (1 - 1e-6) * plan.amax(-1, keepdim=True)
    return torch.where(near, distances, torch.inf).argmin(-1)
