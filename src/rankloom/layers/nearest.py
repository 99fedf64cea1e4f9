"""The nearest centre of each vector, in blocks; also with room for only so many at each centre."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

BLOCK_ROWS = 4096
"""Vectors whose distances to all centres are held at once."""
EXACT_LIMIT = 2**20
"""Entries of the cost matrix, items by places, up to which a balanced assignment is exact."""


def squared_distances(
    vectors: Float[Tensor, "... items width"], centres: Float[Tensor, "... codes width"]
) -> Float[Tensor, "... items codes"]:
    """||x - c||^2 of all pairs by one product, never below zero."""
    # In place: there are as many as pairs, and passes over them are what it costs.
    distances = vectors @ (-2 * centres).mT
    distances += vectors.square().sum(-1).unsqueeze(-1)
    distances += centres.square().sum(-1).unsqueeze(-2)
    return distances.clamp_(min=0)


def assign_nearest(
    vectors: Float[Tensor, "items width"],
    centres: Float[Tensor, "codes width"],
    *,
    prices: Float[Tensor, " codes"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> tuple[Int[Tensor, " items"], Float[Tensor, " items"]]:
    """The nearest centre of each vector, and its squared distance.

    With `prices`, which are not negative, a centre's price is added to its squared distances.
    Of centres that are equally near, but for rounding, it is the one of the lowest number; so equal
    vectors have equal labels also where centres repeat each other.
    """
    labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    distances = vectors.new_empty(len(vectors))
    for rows, block, tolerance in _cost_blocks(vectors, centres, prices, block_rows):
        labels[rows], distances[rows] = _lowest(block, tolerance)
    return labels, distances


def assign_with_margin(
    vectors: Float[Tensor, "items width"],
    centres: Float[Tensor, "codes width"],
    *,
    prices: Float[Tensor, " codes"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> tuple[Int[Tensor, " items"], Float[Tensor, " items"]]:
    """The nearest centre of each vector, and how clear the choice was.

    The margin is 1 - d1 / d2 of the squared distances to the nearest and the second nearest centre:
    0 on the border of two clusters (or where two centres are one), 1 on a centre, and where there
    is one centre only. Prices as in `assign_nearest`.
    """
    labels, first, second = _two_nearest(vectors, centres, prices, block_rows)
    return labels, torch.where(second > 0, 1 - first / second, 0.0)


def balanced_assignment(
    vectors: Float[Tensor, "items width"],
    centres: Float[Tensor, "codes width"],
    *,
    exact_limit: int = EXACT_LIMIT,
    block_rows: int = BLOCK_ROWS,
) -> Int[Tensor, " items"]:
    """A centre for each vector, none for more than ceil(items / codes) of them.

    Up to `exact_limit` entries of items by places it is the assignment of least total squared
    distance. Beyond, it is greedy, in rounds: each vector that has none yet asks for the nearest
    centre with room, and where more ask than fit, those go first that would lose most by their
    second choice. A round fills a centre or is the last, so there are at most as many rounds as
    centres.

    Raises:
        ValueError: no centres.
    """
    num_items, num_codes = len(vectors), len(centres)
    if num_codes == 0:
        raise ValueError("balanced_assignment needs at least one centre; got none")
    capacity = -(-num_items // num_codes)
    if num_items * num_codes * capacity <= exact_limit:
        costs = squared_distances(vectors, centres).double().cpu().numpy()
        places = np.repeat(np.arange(num_codes), capacity)
        chosen = linear_sum_assignment(costs[:, places])[1]
        return torch.from_numpy(places[chosen]).to(vectors.device)
    labels = torch.full((num_items,), -1, device=vectors.device)
    room = torch.full((num_codes,), capacity, device=vectors.device)
    waiting = torch.arange(num_items, device=vectors.device)
    while len(waiting):
        is_open = (room > 0).nonzero().squeeze(1)
        nearest, first, second = _two_nearest(vectors[waiting], centres[is_open], None, block_rows)
        wanted = is_open[nearest]
        # By wanted centre, and within it by what the second choice would cost, greatest first.
        order = (second - first).argsort(descending=True, stable=True)
        order = order[wanted[order].argsort(stable=True)]
        asked = torch.bincount(wanted, minlength=num_codes)  # [codes]
        by_centre = wanted[order]
        begins = asked.cumsum(0) - asked
        place = torch.arange(len(order), device=order.device) - begins[by_centre]
        taken = order[place < room[by_centre]]
        labels[waiting[taken]] = wanted[taken]
        room -= torch.bincount(wanted[taken], minlength=num_codes)
        waiting = waiting[labels[waiting] < 0]
    return labels


def balance_prices(
    vectors: Float[Tensor, "items width"],
    centres: Float[Tensor, "codes width"],
    *,
    num_temperatures: int = 6,
    num_steps: int = 5,
    block_rows: int = BLOCK_ROWS,
) -> Float[Tensor, " codes"]:
    """Prices under which the nearest centres of the vectors have about equal loads.

    They are the dual solution of optimal transport from the vectors to the centres, each of which
    takes an equal share: by Sinkhorn's iteration (Cuturi, NeurIPS 2013) at falling temperatures,
    from the mean squared distance down to a thousandth of it. With prices the rule holds for new
    vectors too. Equal vectors stay together, so loads are as equal as duplicates let them be.

    Returns:
        Prices in the unit of squared distances, the lowest 0.
    """
    prices = vectors.new_zeros(len(centres))
    _, distances = assign_nearest(vectors, centres, block_rows=block_rows)
    warmest = float(distances.mean())
    if warmest == 0:
        return prices  # every vector is on a centre: there is nothing to trade
    for cooling in torch.linspace(0, 3, num_temperatures).tolist():
        temperature = warmest * 10**-cooling
        for _ in range(num_steps):
            loads = torch.zeros_like(prices)
            for _, costs, _ in _cost_blocks(vectors, centres, prices, block_rows):
                loads += (costs / -temperature).softmax(1).sum(0)
            shares = loads * (len(centres) / len(vectors))
            prices += temperature * shares.clamp(min=1e-6).log()
    return prices - prices.min()


def _two_nearest(
    vectors: Tensor, centres: Tensor, prices: Tensor | None, block_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest centre of each vector, its squared distance, and the second nearest's.

    Where there is one centre only, the second is infinitely far.
    """
    labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    first, second = vectors.new_empty(len(vectors)), vectors.new_empty(len(vectors))
    for rows, block, tolerance in _cost_blocks(vectors, centres, prices, block_rows):
        labels[rows], first[rows] = _lowest(block, tolerance)
        second[rows] = block.scatter_(1, labels[rows, None], torch.inf).amin(1)
    return labels, first, second


def _lowest(block: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """The first column of each row that is the row's lowest but for rounding, and the lowest."""
    lowest = block.amin(1)
    near = block <= (lowest + tolerance)[:, None]
    return near.view(torch.uint8).argmax(1), lowest  # faster than the place `min` gives


def _cost_blocks(
    vectors: Tensor, centres: Tensor, prices: Tensor | None, block_rows: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Squared distances to all centres with the centres' prices, some rows at a time.

    Yields:
        The rows; the costs, [rows, codes]; and what rounding may add to them, [rows].
    """
    # Distances are differences of large numbers where data lie far from zero; so they are centred.
    middle = centres.mean(0)
    centred = centres - middle
    error = 8 * torch.finfo(vectors.dtype).eps
    largest = centred.square().sum(1).amax() + error * middle.square().sum()
    for begin in range(0, len(vectors), block_rows):
        rows = slice(begin, begin + block_rows)
        block = vectors[rows] - middle
        tolerance = error * (block.square().sum(1) + largest)
        costs = squared_distances(block, centred)
        yield rows, costs if prices is None else costs.add_(prices), tolerance
