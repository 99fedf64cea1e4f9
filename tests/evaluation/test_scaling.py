"""Scaling laws: planted curves, noise, degenerate grids, and compute for equal quality."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from rankloom.evaluation.equal_compute import EqualCompute, NotReached, equal_compute
from rankloom.evaluation.power_law import fit_power_law, resample
from rankloom.evaluation.scaling import (
    NoCurve,
    ScalingCurve,
    ScalingFit,
    fit_scaling,
    gap_shrinkage,
)

COMPUTE = np.geomspace(1e6, 4e9, 10)
LAWS = [(0.82, 0.09, 0.071), (0.83, 0.3, 0.118), (0.8, 5.0, 0.3), (0.9, 1e3, 0.8)]


def law(alpha: float, beta: float, gamma: float, sign: int = -1) -> list[list[float]]:
    return [[float(value)] for value in alpha + sign * beta * COMPUTE**-gamma]


def curve_of(fit: ScalingFit) -> ScalingCurve:
    assert isinstance(fit.result, ScalingCurve), fit.result
    return fit.result


def reason_of(fit: ScalingFit) -> str:
    assert isinstance(fit.result, NoCurve), fit.result
    return fit.result.reason


def noisy(
    alpha: float, beta: float, gamma: float, sd: float, seed: int, seeds: int = 3
) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    exact = alpha - beta * COMPUTE**-gamma
    values: list[list[float]] = (exact[:, None] + sd * generator.normal(size=(10, seeds))).tolist()
    return values


@pytest.mark.parametrize(("gamma", "share"), [(0.071, 0.048), (0.089, 0.060), (0.118, 0.079)])
def test_doubling_compute_shrinks_the_gap(gamma: float, share: float) -> None:
    assert gap_shrinkage(gamma) == pytest.approx(share, abs=5e-4)
    # The same by the law itself: the distances to alpha at C and at 2 C.
    near, far = 0.3 * 1e7**-gamma, 0.3 * 2e7**-gamma
    assert 1 - far / near == pytest.approx(gap_shrinkage(gamma))
    assert gap_shrinkage(gamma, 4) == pytest.approx(1 - (1 - gap_shrinkage(gamma)) ** 2)


@pytest.mark.parametrize(("alpha", "beta", "gamma"), LAWS)
@pytest.mark.parametrize("higher", [True, False])
def test_a_planted_curve_is_recovered(
    alpha: float, beta: float, gamma: float, higher: bool
) -> None:
    values = law(alpha, beta, gamma) if higher else law(0.2, beta, gamma, sign=1)
    fit = fit_scaling(COMPUTE, values, higher_is_better=higher, samples=20)
    curve = curve_of(fit)
    assert curve.alpha.value == pytest.approx(alpha if higher else 0.2, abs=1e-9)
    assert curve.beta.value == pytest.approx(beta, rel=1e-7)
    assert curve.gamma.value == pytest.approx(gamma, rel=1e-7)
    assert curve.r2 == pytest.approx(1, abs=1e-12)
    assert curve.gamma.high - curve.gamma.low < 1e-6  # every draw lies on the curve
    np.testing.assert_allclose(fit.at(COMPUTE), fit.means, atol=1e-9)


def test_the_unit_of_compute_moves_beta_alone() -> None:
    values = noisy(0.83, 0.3, 0.118, 2e-4, seed=0)
    rows, mega = (curve_of(fit_scaling((COMPUTE / unit).tolist(), values)) for unit in (1, 1e6))
    assert mega.gamma.value == pytest.approx(rows.gamma.value, rel=1e-5)
    assert mega.gamma.low == pytest.approx(rows.gamma.low, rel=1e-5)
    assert mega.alpha.value == pytest.approx(rows.alpha.value, rel=1e-6)
    assert mega.beta.value == pytest.approx(rows.beta.value * 1e6**-rows.gamma.value, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_search_over_gamma_agrees_with_general_least_squares(seed: int) -> None:
    """scipy's least squares over all three parameters, from many starting points."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(1, 5, 10).astype(np.float64)
    alpha, beta, gamma = LAWS[seed % len(LAWS)]
    y = alpha - beta * COMPUTE**-gamma + 1e-3 * generator.normal(size=10)
    found = fit_power_law(COMPUTE[None], y[None], weights[None], 1.0)[0]

    def residuals(parameters: np.ndarray) -> np.ndarray:
        a, log_b, g = parameters
        return np.asarray(np.sqrt(weights) * (a - np.exp(log_b) * (COMPUTE / 1e8) ** -g - y))

    bounds = ([0.0, -20, 0.001], [1.0, 5, 2.0])
    starts = [(a, b, g) for a in (y.max() + 1e-3, 0.95) for b in (-6, -2) for g in (0.05, 0.4, 1)]
    solved = [
        least_squares(residuals, s, bounds=bounds, xtol=1e-14, ftol=1e-14, gtol=1e-14)
        for s in starts
    ]
    best = min(solved, key=lambda solution: solution.cost)
    ours = np.array([found[0], np.log(found[1] * 1e8 ** -found[2]), found[2]])
    assert (residuals(ours) ** 2).sum() <= 2 * best.cost * (1 + 1e-9)
    np.testing.assert_allclose(ours, best.x, rtol=2e-3)


def test_parameters_stay_inside_their_bounds() -> None:
    generator = np.random.default_rng(3)
    y = generator.uniform(0.5, 0.9, (200, 6))
    compute = np.tile(np.geomspace(1, 1e3, 6), (200, 1))
    alpha, beta, gamma = fit_power_law(compute, y, np.ones_like(y), 1.0).T
    assert (alpha >= y.mean(axis=1)).all()
    assert (alpha <= 1).all()
    assert (beta >= 0).all()
    assert ((gamma >= 0.001) & (gamma <= 2)).all()


def test_noise_of_a_level_part_does_not_lift_alpha() -> None:
    """Where a curve is level, half of its means lie above it."""
    compute = np.tile(np.geomspace(1, 1e6, 12), (200, 1))
    noise = 1e-3 * np.random.default_rng(0).normal(size=compute.shape)
    y = 0.8 - 0.2 * compute**-0.8 + noise
    alpha = fit_power_law(compute, y, np.ones_like(y), 1.0)[:, 0]
    assert np.median(alpha) == pytest.approx(0.8, abs=2e-4)
    assert np.median(y.max(axis=1)) > 0.8 + 1e-3


def test_a_size_weighs_as_much_as_it_has_seeds() -> None:
    """Three equal runs of one size count as three points of it."""
    values = noisy(0.83, 0.3, 0.118, 5e-4, seed=1, seeds=1)
    tripled = fit_scaling(COMPUTE, [values[0] * 3, *values[1:]], samples=2)
    repeated = fit_scaling(
        [COMPUTE[0], COMPUTE[0], *COMPUTE], [values[0], values[0], *values], samples=2
    )
    single = fit_scaling(COMPUTE, values, samples=2)
    gammas = [curve_of(fit).gamma.value for fit in (tripled, repeated, single)]
    assert gammas[0] == pytest.approx(gammas[1], rel=1e-6)
    assert abs(gammas[0] - gammas[2]) > 1e-5


def test_the_order_of_points_does_not_matter() -> None:
    values = noisy(0.83, 0.3, 0.118, 2e-4, seed=2)
    straight = fit_scaling(COMPUTE, values, samples=20)
    backwards = fit_scaling(COMPUTE[::-1], values[::-1], samples=20)
    assert straight.result == backwards.result


def test_intervals_cover_the_truth() -> None:
    """Forty planted curves with noise; a 90% interval of each exponent covers at least 36."""
    alpha, beta, gamma = 0.83, 1.0, 0.22
    covered, widths = 0, []
    for seed in range(40):
        values = noisy(alpha, beta, gamma, 5e-4, seed)
        fit = fit_scaling(COMPUTE, values, samples=100, level=0.9, seed=seed)
        interval = curve_of(fit).gamma
        covered += interval.low <= gamma <= interval.high
        widths.append(interval.high - interval.low)
    assert covered >= 36
    assert 0.01 < np.mean(widths) < 0.1  # not by covering everything


def test_draws_repeat_with_their_seed() -> None:
    values = noisy(0.83, 0.3, 0.118, 2e-4, seed=2)
    first, again, other = (
        fit_scaling(COMPUTE, values, samples=50, seed=seed).result for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_resampling_draws_points_with_their_own_seeds() -> None:
    compute = np.array([1.0, 2, 3, 4, 5])
    runs = [np.array([10.0]), np.array([20.0, 21]), *(np.array([p, p, p]) for p in (3.0, 4, 5))]
    c, means, counts = resample(compute, runs, 400, np.random.default_rng(0))
    assert c.shape == means.shape == counts.shape == (400, 5)
    assert min(len(set(row)) for row in c.tolist()) == 4  # never fewer than a law needs
    by_point = {point: set(means[c == point].tolist()) for point in compute}
    assert by_point == {1: {10}, 2: {20, 20.5, 21}, 3: {3}, 4: {4}, 5: {5}}
    for point, size in zip(compute, (1, 2, 3, 3, 3), strict=True):
        assert set(counts[c == point].tolist()) == {size}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.7, 0.71], [0.72, 0.73], [0.74, 0.75]], "3 distinct amounts of compute"),
        ([[0.7]] * 10, "flat: all sizes have the same value"),
        (law(0.6, -0.1, 0.2), "the metric gets worse with compute"),
        ([[0.5 + 0.02 * place] for place in range(10)], "alpha ends at its bound 1"),
        ([[0.7]] + [[0.8 - 1e-9 * place] for place in range(9)], "gamma ends at its bound 2"),
    ],
)
def test_points_that_decide_nothing(values: list[list[float]], message: str) -> None:
    fit = fit_scaling(COMPUTE[: len(values)], values, samples=5)
    assert message in reason_of(fit)


def test_equal_amounts_of_compute_are_one() -> None:
    compute = [1.0, 1.0 + 1e-9, 2.0, 2.0, 3.0, 3.0]
    fit = fit_scaling(compute, [[0.7 + 0.01 * place] for place in range(6)])
    assert reason_of(fit).startswith("3 distinct amounts")
    assert reason_of(fit_scaling([], [])).startswith("0 distinct amounts")


def test_a_rise_within_the_noise_of_seeds_is_flat() -> None:
    """The same means count as flat or not by how far apart seeds are."""
    rise = (0.8 - 0.05 * COMPUTE**-0.2).tolist()
    near = [[mean - 1e-5, mean + 1e-5] for mean in rise]
    far = [[mean - 0.05, mean + 0.05] for mean in rise]
    assert isinstance(fit_scaling(COMPUTE, near, samples=5).result, ScalingCurve)
    reason = reason_of(fit_scaling(COMPUTE, far, samples=5))
    assert reason.startswith("flat: the rise with compute is within the noise of seeds (p = ")
    zigzag = [[0.8 + 0.01 * (place % 2)] for place in range(10)]
    assert "the noise of the points about the best curve" in reason_of(fit_scaling(COMPUTE, zigzag))


@pytest.mark.parametrize("seeds", [1, 3])
def test_noise_alone_seldom_makes_a_curve(seeds: int) -> None:
    """Of a hundred level metrics about one in twenty seems to move at the 5% level."""
    level = [
        reason_of(fit).startswith(("flat", "the metric gets worse"))
        for seed in range(100)
        for fit in [fit_scaling(COMPUTE, noisy(0.8, 0, 1, 1e-3, seed, seeds), samples=2)]
        if isinstance(fit.result, NoCurve)
    ]
    assert sum(level) >= 88


def test_a_metric_that_saturates_at_once_is_not_flat() -> None:
    """One step and then level: no straight line in log C finds it, the law does."""
    values = [[0.7, 0.701], *([0.8, 0.801] for _ in range(9))]
    assert reason_of(fit_scaling(COMPUTE, values, samples=5)).startswith("gamma ends at its bound")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [[0.5]]), "every amount of compute needs values"),
        (([1.0], [[]]), "every amount of compute needs values"),
        (([0.0], [[0.5]]), "compute must be above 0"),
        (([1.0], [[float("nan")]]), r"must be finite and lie in \[0, 1\]"),
        (([1.0], [[1.5]]), r"must be finite and lie in \[0, 1\]"),
    ],
)
def test_wrong_points(arguments: tuple[list[float], list[list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_scaling(*arguments)
    with pytest.raises(ValueError, match="samples must be at least 2; got 1"):
        fit_scaling([1.0], [[0.5]], samples=1)
    with pytest.raises(ValueError, match="level must lie inside"):
        fit_scaling([1.0], [[0.5]], level=1)


def test_log_loss_may_exceed_one() -> None:
    fit = fit_scaling(COMPUTE, law(1.2, 0.5, 0.1, sign=1), higher_is_better=False, samples=5)
    assert curve_of(fit).alpha.value == pytest.approx(1.2)


@pytest.mark.parametrize("higher", [True, False])
def test_equal_compute_of_planted_curves(higher: bool) -> None:
    """A model whose gap is that of the reference at three times the compute."""
    values = law(0.82, 0.09, 0.071) if higher else law(0.3, 0.09, 0.071, sign=1)
    reference = fit_scaling(COMPUTE, values, higher_is_better=higher, samples=50)
    target = (0.82 if higher else 0.3) + (-1 if higher else 1) * 0.09 * (3 * 1e7) ** -0.071
    outcome = equal_compute(1e7, [target], reference)
    assert isinstance(outcome, EqualCompute)
    assert outcome.compute == pytest.approx(3e7, rel=1e-5)
    assert outcome.ratio == pytest.approx(3, rel=1e-5)
    assert (outcome.low, outcome.high) == pytest.approx((3, 3), rel=1e-3)


def test_equal_compute_stays_inside_the_grid() -> None:
    reference = fit_scaling(COMPUTE, law(0.82, 0.09, 0.071), samples=50)
    first, last = reference.means[0], reference.means[-1]
    for value, compute in ((first, COMPUTE[0]), (last, COMPUTE[-1])):
        outcome = equal_compute(1e7, [float(value)], reference)
        assert isinstance(outcome, EqualCompute)
        assert outcome.compute == pytest.approx(compute)
    above = equal_compute(1e7, [float(last) + 1e-6], reference)
    assert above == NotReached(reason="not reached within the grid of the reference")
    beyond_alpha = equal_compute(1e7, [0.9], reference)
    assert beyond_alpha == above
    below = equal_compute(1e7, [float(first) - 1e-6], reference)
    assert isinstance(below, NotReached)
    assert below.reason == "the smallest size of the reference is better already"


def test_interval_of_equal_compute_knows_the_seeds_of_the_model_and_the_ends_of_the_grid() -> None:
    reference = fit_scaling(COMPUTE, noisy(0.82, 0.09, 0.071, 1e-5, 0), samples=200)
    middle = float(reference.means[5])
    near = equal_compute(1e7, [middle - 1e-5, middle + 1e-5], reference)
    far = equal_compute(1e7, [middle - 5e-4, middle + 5e-4], reference)
    wild = equal_compute(1e7, [middle - 0.1, middle + 0.1], reference)
    assert isinstance(near, EqualCompute)
    assert isinstance(far, EqualCompute)
    assert isinstance(wild, EqualCompute)
    assert None not in (near.low, near.high, far.low, far.high)
    assert far.low < near.low < near.ratio < near.high < far.high  # type: ignore[operator]
    assert (wild.low, wild.high) == (None, None)
    assert near.ratio == pytest.approx(far.ratio) == pytest.approx(wild.ratio)


def test_equal_compute_without_a_law() -> None:
    """A bound leaves a line to read; a flat reference leaves none."""
    straight = [[0.5 + 0.02 * place] for place in range(10)]
    bounded = fit_scaling(COMPUTE, straight, samples=50)
    assert isinstance(bounded.result, NoCurve)
    outcome = equal_compute(1e7, [0.6], bounded)
    assert isinstance(outcome, EqualCompute)
    assert outcome.compute == pytest.approx(COMPUTE[5], rel=0.3)
    flat = fit_scaling(COMPUTE, [[0.7]] * 10)
    missing = equal_compute(1e7, [0.6], flat)
    assert isinstance(missing, NotReached)
    assert missing.reason == "the reference has no line: flat: all sizes have the same value"
    with pytest.raises(ValueError, match="its result says why"):
        flat.at(COMPUTE)
    for compute, values in ((0.0, [0.5]), (1.0, []), (1.0, [float("nan")])):
        with pytest.raises(ValueError, match="a size needs compute above 0 and values"):
            equal_compute(compute, values, flat)
