"""What becomes of a stack's tokens over depth: sums that batches add to, and what they amount to.

For every layer of a stack of token layers:

- weights of attention over blocks of earlier layers: their means, and how many are negative;
- gates in (0, 1): mean, deciles, histogram;
- how much of the stack's input x_0 is left in what the layer reads, x: the mean cosine similarity
  of the two, token by token, and the R^2 of a ridge regression from x to x_0.

The regression has one matrix for all tokens and an intercept for every token's place. It is fitted
on one half of the rows and scored on the other, around the means of that half, all dimensions
together: R^2 = 1 - sum of squared errors / sum of squares. Only moments are kept, in float64.
"""

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from rankloom.config import Config
from rankloom.runs.record import Number

RIDGE = 1e-4
"""Penalty of the regression, in mean variances of what it reads."""
NUM_GATE_BINS = 20
"""Bins of a gate histogram."""
FINE_BINS = 1000
"""Bins that gates are counted in, for deciles; a multiple of the other."""

Real = Bool[Tensor, "batch tokens"] | None
"""True at tokens that count; None: all do."""


class LayerWeights(Config):
    """Attention of one layer to the blocks below it, over tokens and depth heads."""

    layer: int = Field(ge=0)
    """Layer, from 0; sublayers are counted where the connection stands around those."""
    mean: tuple[Number, ...]
    """Mean weight of every block; block 0 is the stack's input."""
    negative: Number
    """Share of the weights below zero."""


class LayerGates(Config):
    """Gates of one layer, over tokens and dimensions; 1 is the identity path alone."""

    layer: int = Field(ge=0)
    """Layer, from 0."""
    mean: Number
    """Mean gate."""
    deciles: tuple[Number, ...]
    """The nine deciles, exact to a thousandth."""
    histogram: tuple[Number, ...]
    """Share of the gates in each of twenty equal bins between 0 and 1."""


class LayerInput(Config):
    """The stack's input in what one layer reads."""

    layer: int = Field(ge=0)
    """Layer, from 0."""
    tokens: int = Field(ge=0)
    """Tokens that the layer reads; the last ones where they are fewer than the stack's."""
    cosine: Number
    """Mean cosine similarity; NaN where the layer reads another width."""
    r_squared: Number
    """Share of the input's variance that a linear map finds; below 0: worse than the means."""


class StackDepth(Config):
    """One stack of one run."""

    run: str
    """Label of the run."""
    stack: str
    """Path of the stack."""
    weights: tuple[LayerWeights, ...] = ()
    """By layer; empty without attention over depth."""
    gates: tuple[LayerGates, ...] = ()
    """By layer; empty without gates."""
    inputs: tuple[LayerInput, ...] = ()
    """By layer."""


class WeightSums(NamedTuple):
    """Weights, summed."""

    total: Float[Tensor, " blocks"]
    """Sum of every block's weights."""
    negative: Float[Tensor, ""]
    """Number of weights below zero."""
    num_weights: Float[Tensor, ""]
    """Number of weights of one block."""


class GateSums(NamedTuple):
    """Gates, counted."""

    counts: Float[Tensor, " bins"]
    """Gates in each of the fine bins."""
    total: Float[Tensor, ""]
    """Their sum."""


class CosineSums(NamedTuple):
    """Cosine similarities, summed."""

    total: Float[Tensor, ""]
    """Their sum."""
    num_values: Float[Tensor, ""]
    """Their number."""


class Moments(NamedTuple):
    """First moments of pairs (x, y) by token, second ones over all tokens."""

    num_pairs: Float[Tensor, " tokens"]
    """Pairs of every token."""
    x: Float[Tensor, "tokens in_dim"]
    """Sums of x."""
    y: Float[Tensor, "tokens out_dim"]
    """Sums of y."""
    xx: Float[Tensor, "in_dim in_dim"]
    """Sum of x x^T."""
    xy: Float[Tensor, "in_dim out_dim"]
    """Sum of x y^T."""
    yy: Float[Tensor, ""]
    """Sum of y^T y."""


Sums = TypeVar("Sums", WeightSums, GateSums, CosineSums, Moments)


def combined(first: Sums | None, second: Sums) -> Sums:
    """The sums over both sets of rows; None stands for no rows."""
    if first is None:
        return second
    return type(second)(*(a + b for a, b in zip(first, second, strict=True)))


def weight_sums(
    weights: Float[Tensor, "batch tokens depth_heads blocks"], real: Real = None
) -> WeightSums:
    """The weights of one layer over some rows, summed."""
    chosen = _chosen(weights.double(), real).flatten(0, -2)  # [weights of a block, blocks]
    return WeightSums(
        chosen.sum(0), (chosen < 0).sum().double(), chosen.new_tensor(float(len(chosen)))
    )


def layer_weights(layer: int, sums: WeightSums) -> LayerWeights:
    """What the weights of a layer add up to; NaN without any."""
    return LayerWeights(
        layer=layer,
        mean=tuple((sums.total / sums.num_weights).tolist()),
        negative=float(sums.negative / (sums.num_weights * len(sums.total))),
    )


def gate_sums(gates: Float[Tensor, "batch tokens _"], real: Real = None) -> GateSums:
    """The gates of one layer over some rows, counted; those that are NaN are in the sum only."""
    chosen = _chosen(gates.double(), real).flatten()
    known = chosen[~chosen.isnan()]
    bins = (known * FINE_BINS).long().clamp(0, FINE_BINS - 1)
    return GateSums(torch.bincount(bins, minlength=FINE_BINS).double(), chosen.sum())


def layer_gates(layer: int, sums: GateSums) -> LayerGates:
    """What the gates of a layer add up to; NaN without any."""
    counts = sums.counts.cpu()  # deciles are read one by one
    count = counts.sum()
    shares = counts.reshape(NUM_GATE_BINS, -1).sum(1) / count
    return LayerGates(
        layer=layer,
        mean=float(sums.total.cpu() / count),
        deciles=tuple(_quantile(counts, tenth / 10) for tenth in range(1, 10)),
        histogram=tuple(shares.tolist()),
    )


def cosine_sums(
    x: Float[Tensor, "batch tokens dim"], start: Float[Tensor, "batch tokens dim"], real: Real
) -> CosineSums:
    """Cosine similarities of tokens to those of the stack's input; a token of zeros has 0."""
    values = _chosen(functional.cosine_similarity(x.double(), start.double(), dim=-1), real)
    return CosineSums(values.sum(), values.new_tensor(float(values.numel())))


def moments(
    x: Float[Tensor, "batch tokens in_dim"], y: Float[Tensor, "batch tokens out_dim"], real: Real
) -> Moments:
    """Moments of pairs of tokens over some rows."""
    x, y = x.double(), y.double()
    weight = x.new_ones(x.shape[:2]) if real is None else real.double()
    # Padding may hold anything; it is taken out, not multiplied with zero.
    x, y = (value.masked_fill(weight[..., None] == 0, 0.0) for value in (x, y))
    flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
    return Moments(
        num_pairs=weight.sum(0),
        x=x.sum(0),
        y=y.sum(0),
        xx=flat_x.mT @ flat_x,
        xy=flat_x.mT @ flat_y,
        yy=y.square().sum(),
    )


def ridge_r_squared(fitted: Moments, scored: Moments, ridge: float = RIDGE) -> float:
    """R^2 on one set of rows of a ridge regression of y on x fitted on another.

    Args:
        fitted: moments of the rows that the regression is fitted on.
        scored: moments of the rows that it is scored on.
        ridge: penalty, in mean variances of x.

    Returns:
        R^2; NaN where either set is empty, a value is not finite, or y does not vary within tokens.
    """
    if not (fitted.num_pairs.sum() > 0 and scored.num_pairs.sum() > 0):
        return float("nan")
    if not all(value.isfinite().all() for value in (*fitted, *scored)):
        return float("nan")
    centre_x, centre_y = _means(fitted.num_pairs, fitted.x), _means(fitted.num_pairs, fitted.y)
    xx, xy, _ = _about(fitted, centre_x, centre_y)
    diagonal = xx.diagonal()
    penalty = ridge * diagonal.mean() + torch.finfo(xx.dtype).tiny
    unit = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    matrix = torch.linalg.solve(xx + penalty * unit, xy)
    xx, xy, yy = _about(scored, centre_x, centre_y)
    errors = yy - 2 * (matrix * xy).sum() + (matrix * (xx @ matrix)).sum()
    own = _means(scored.num_pairs, scored.y)
    total = _about(scored, centre_x, own)[2]
    # What float32 cannot tell from a constant is one.
    if total <= torch.finfo(torch.float32).eps ** 2 * scored.yy:
        return float("nan")
    return float(1 - errors / total)


def _about(sums: Moments, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments about a centre for every token: xx, xy, yy."""
    count = sums.num_pairs[:, None]  # [tokens, 1]
    rest_x, rest_y = sums.x - count * x, sums.y - count * y
    xx = sums.xx - x.mT @ sums.x - rest_x.mT @ x
    xy = sums.xy - x.mT @ sums.y - rest_x.mT @ y
    yy = sums.yy - (y * sums.y).sum() - (rest_y * y).sum()
    return xx, xy, yy


def _means(count: Tensor, total: Tensor) -> Tensor:
    """Means by token; a token that was never seen has the mean of all."""
    overall = total.sum(0) / count.sum()
    return torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), overall)


def _chosen(values: Float[Tensor, "batch tokens *rest"], real: Real) -> Tensor:
    return values.flatten(0, 1) if real is None else values[real]


def _quantile(counts: Float[Tensor, " bins"], share: float) -> float:
    """The value below which a share of the counted values lies, linear within its bin."""
    running = counts.cumsum(0)
    if not running[-1] > 0:
        return float("nan")
    wanted = share * running[-1]
    # The first bin whose running count reaches it holds at least one value.
    position = int(torch.searchsorted(running, wanted))
    within = 1 - (running[position] - wanted) / counts[position]
    return float((position + within) / len(counts))
