"""Least squares of y = alpha - beta C^(-gamma) for many bootstrap draws at once.

For a given gamma the law is linear in alpha and beta, so the least squares over all three is a
search over gamma alone (separable least squares, Golub and Pereyra 1973): a grid over its whole
range, where every value is a starting point, then ever finer ones around the best.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankloom.evaluation.metrics import FloatArray

FEWEST_SIZES = 5
"""Fewest distinct amounts of compute that a law is fitted to."""
FEWEST_DRAWN = 4
"""The same of a bootstrap draw, so that draws of the fewest sizes differ in their points too."""
GAMMA_BOUNDS = (0.001, 2.0)
"""Smallest and largest exponent that is looked for."""
SAME_COMPUTE = 1e-6
"""Amounts of compute that differ by a smaller share count as one."""
GRID_STEPS = 96
"""Exponents of the first grid, from bound to bound."""
ZOOM_STEPS = 17
"""Exponents of every finer one."""
ZOOMS = 12
"""Finer grids; each spans two steps of the one before, so the last is exact to rounding."""
AT_BOUND = 1e-6
"""Distance at which a fitted value counts as lying at its bound."""
DRAWS_AT_ONCE = 128
"""Draws that are fitted together."""


def fit_power_law(
    compute: FloatArray, y: FloatArray, weights: FloatArray, ceiling: float
) -> FloatArray:
    """Least squares of every draw, alpha up to a ceiling, beta above 0.

    Where no curve of a gamma rises, alpha is kept at the largest y.

    Args:
        compute: [draws, points], above 0.
        y: [draws, points].
        weights: [draws, points], above 0.
        ceiling: largest alpha.

    Returns:
        [draws, 3] alpha, beta and gamma.
    """
    if len(y) > DRAWS_AT_ONCE:
        parts = range(0, len(y), DRAWS_AT_ONCE)
        pieces = [slice(start, start + DRAWS_AT_ONCE) for start in parts]
        return np.concatenate(
            [fit_power_law(compute[p], y[p], weights[p], ceiling) for p in pieces]
        )
    log_c = np.log(compute)
    centre = log_c.mean(axis=1, keepdims=True)  # powers of C / C0 stay near 1
    rows = np.arange(len(y))
    gammas = np.broadcast_to(np.geomspace(*GAMMA_BOUNDS, GRID_STEPS), (len(y), GRID_STEPS))
    for zoom in range(ZOOMS + 1):
        alpha, beta, error = _fit_linear(gammas, log_c - centre, y, weights, ceiling)
        best = error.argmin(axis=1)
        if zoom < ZOOMS:
            low = gammas[rows, np.maximum(best - 1, 0)]
            high = gammas[rows, np.minimum(best + 1, gammas.shape[1] - 1)]
            gammas = np.linspace(low, high, ZOOM_STEPS, axis=1)
    gamma = gammas[rows, best]
    scaled = beta[rows, best] * np.exp(gamma * centre[:, 0])
    return np.stack([alpha[rows, best], scaled, gamma], axis=1)


def resample(
    compute: FloatArray, runs: Sequence[FloatArray], samples: int, generator: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bootstrap draws of points, and of the seeds of each, with replacement.

    Draws with fewer than `FEWEST_DRAWN` distinct amounts of compute are drawn again.

    Args:
        compute: [points], ascending; at least `FEWEST_SIZES` distinct.
        runs: the metric of each seed, by point.
        samples: number of draws.
        generator: source of randomness.

    Returns:
        Compute, mean over the drawn seeds, and number of seeds, each [samples, points].
    """
    num_points = len(runs)
    counts = np.array([len(point) for point in runs])
    padded = np.zeros((num_points, counts.max()))
    for place, point in enumerate(runs):
        padded[place, : len(point)] = point
    groups = size_groups(compute)
    kept: list[NDArray[np.int64]] = []
    while sum(map(len, kept)) < samples:
        points = np.sort(generator.integers(0, num_points, (samples, num_points)), axis=1)
        distinct = 1 + (np.diff(groups[points], axis=1) > 0).sum(axis=1)
        kept.append(points[distinct >= FEWEST_DRAWN])
    points = np.concatenate(kept)[:samples]
    sizes = counts[points]
    seeds = generator.integers(0, sizes[..., None], (*points.shape, counts.max()))
    drawn = padded[points[..., None], seeds]  # [samples, points, seeds]
    taken = np.arange(counts.max()) < sizes[..., None]
    return compute[points], (drawn * taken).sum(axis=-1) / sizes, sizes.astype(np.float64)


def size_groups(compute: FloatArray) -> NDArray[np.int64]:
    """Number of the distinct amount that each ascending amount of compute is, [points] from 0."""
    steps = np.diff(np.log(compute)) > SAME_COMPUTE
    return np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)


def at_bound(parameters: FloatArray, best_alpha: float) -> NDArray[np.bool_]:
    """Whether alpha, or a small gamma or a large gamma ended at its bound, [draws, 3]."""
    alpha, gamma = parameters[:, 0], parameters[:, 2]
    smallest, largest = GAMMA_BOUNDS
    return np.stack(
        [
            np.abs(alpha - best_alpha) <= AT_BOUND,
            gamma <= smallest * (1 + AT_BOUND),
            gamma >= largest * (1 - AT_BOUND),
        ],
        axis=1,
    )


def _fit_linear(
    gammas: FloatArray, x: FloatArray, y: FloatArray, weights: FloatArray, ceiling: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Alpha, beta and the sum of squares for given gammas [draws, steps], each [draws, steps]."""
    w, y = weights[:, None], y[:, None]  # [draws, 1, points]
    u = np.exp(-gammas[:, :, None] * x[:, None])  # [draws, steps, points]
    total = w.sum(axis=-1)
    mean_u, mean_y = (w * u).sum(axis=-1) / total, (w * y).sum(axis=-1) / total
    centred = u - mean_u[..., None]
    slope = (w * centred * y).sum(axis=-1) / (w * centred**2).sum(axis=-1)
    # With the best beta for each alpha the error is a parabola in alpha: its best value inside
    # bounds is the free one, moved to the nearer bound. A rising curve has a positive beta of its
    # own; noise may lie above its alpha. Alpha above every y makes the others' beta positive.
    lowest = np.where(slope < 0, -np.inf, np.minimum(y.max(axis=-1), ceiling))
    alpha = np.clip(mean_y - slope * mean_u, lowest, ceiling)
    below = alpha[..., None] - y
    beta = (w * u * below).sum(axis=-1) / (w * u**2).sum(axis=-1)
    error = (w * (below - beta[..., None] * u) ** 2).sum(axis=-1)
    return alpha, beta, error
