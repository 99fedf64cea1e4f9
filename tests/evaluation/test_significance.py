import numpy as np
import pytest
from scipy import stats

from rankloom.evaluation.metrics import auc, gauc, log_loss
from rankloom.evaluation.significance import (
    auc_interval,
    bootstrap_interval,
    delong_test,
    holm,
    mean_interval,
    paired_t_test,
)


def slow_delong(labels, *scores):
    """DeLong 1988, equations 4 to 6, pair by pair."""
    kernels = []
    for s in scores:
        positive, negative = s[labels == 1], s[labels == 0]
        kernel = np.empty((len(positive), len(negative)))
        for i, x in enumerate(positive):
            for j, y in enumerate(negative):
                kernel[i, j] = 1.0 if x > y else 0.5 if x == y else 0.0
        kernels.append(kernel)
    areas = np.array([kernel.mean() for kernel in kernels])
    won = np.atleast_2d(np.cov([kernel.mean(axis=1) for kernel in kernels]))
    lost = np.atleast_2d(np.cov([kernel.mean(axis=0) for kernel in kernels]))
    return areas, won / kernels[0].shape[0] + lost / kernels[0].shape[1]


def scored_rows(seed, rows=80, ties=True):
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.4).astype(np.int64)
    common = generator.standard_normal(rows) + labels
    a, b = (common + generator.standard_normal(rows) * 0.7 for _ in range(2))
    return (labels, a.round(1), b.round(1)) if ties else (labels, a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_the_pairwise_reference(seed, ties):
    labels, a, b = scored_rows(seed, ties=ties)
    areas, covariance = slow_delong(labels, a, b)
    interval = auc_interval(labels, a)
    assert interval.estimate == pytest.approx(areas[0], abs=1e-13)
    assert interval.estimate == pytest.approx(auc(labels, a), abs=1e-13)
    assert interval.standard_error == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)
    test = delong_test(labels, a, b)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test.difference == pytest.approx(areas[0] - areas[1], abs=1e-13)
    assert test.standard_error == pytest.approx(error, rel=1e-9)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(areas[0] - areas[1]) / error))
    assert (test.low + test.high) / 2 == pytest.approx(test.difference)
    assert test.high - test.difference == pytest.approx(1.959963985 * error)


def test_infinite_scores_tie_like_others():
    labels, a, b = scored_rows(7)
    a[a > 1] = np.inf
    areas, covariance = slow_delong(labels, a, b)
    interval = auc_interval(labels, a)
    assert interval.estimate == pytest.approx(areas[0], abs=1e-13)
    assert interval.standard_error == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)


def test_delong_by_hand():
    # Positives 3, 1 and negatives 2, 0: V10 = (1, 1/2), V01 = (1/2, 1): both variances 1/8.
    interval = auc_interval([1, 1, 0, 0], [3, 1, 2, 0], scale="plain")
    assert interval.estimate == 0.75
    assert interval.standard_error == pytest.approx(np.sqrt(1 / 8 / 2 + 1 / 8 / 2))
    assert interval.low == pytest.approx(0.75 - 1.959963985 * np.sqrt(1 / 8))
    assert interval.high == 1.0


def test_logit_interval_by_hand_stays_inside():
    interval = auc_interval([1, 1, 0, 0], [3, 1, 2, 0])
    spread = 1.959963985 * np.sqrt(1 / 8) / (0.75 * 0.25)
    assert interval.low == pytest.approx(1 / (1 + np.exp(-(np.log(3) - spread))))
    assert interval.high == pytest.approx(1 / (1 + np.exp(-(np.log(3) + spread))))
    assert 0 < interval.low < interval.high < 1


def test_auc_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))  # positives are shifted by one deviation
    labels = np.repeat([0, 1], [150, 50])
    covered = 0
    for _ in range(400):
        interval = auc_interval(labels, generator.standard_normal(200) + labels, level=0.9)
        covered += interval.low <= truth <= interval.high
    assert 0.86 < covered / 400 < 0.94


def test_delong_p_values_are_uniform_when_the_models_are_equally_good():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], [100, 100])
    p_values = []
    for _ in range(300):
        common = generator.standard_normal(200) + labels
        a, b = (common + generator.standard_normal(200) for _ in range(2))
        p_values.append(delong_test(labels, a, b).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_equal_orders_are_no_difference():
    labels, a, _ = scored_rows(0)
    test = delong_test(labels, a, 2 * a + 1)
    assert (test.difference, test.standard_error, test.p_value) == (0.0, 0.0, 1.0)


def test_one_swapped_pair_in_many_rows_is_not_significant():
    generator = np.random.default_rng(2)
    labels = np.tile([0, 1], 20_000)
    a = np.argsort(np.argsort(generator.standard_normal(40_000) + labels)).astype(float)
    b = a.copy()
    low = np.flatnonzero(labels == 0)[0]
    high = np.flatnonzero((labels == 1) & (a == a[low] + 1))
    if not len(high):  # the neighbour in rank is a negative as well: move past the next positive
        high = np.flatnonzero((labels == 1) & (a > a[low]))[:1]
    b[low], b[high[0]] = a[high[0]], a[low]
    test = delong_test(labels, a, b)
    assert test.difference != 0
    assert test.standard_error > 0
    assert test.p_value > 0.1


def test_perfect_and_constant_scores():
    labels = [0, 0, 1, 1]
    perfect = auc_interval(labels, [1, 2, 3, 4])
    assert (perfect.estimate, perfect.low, perfect.high) == (1.0, 1.0, 1.0)
    constant = auc_interval(labels, [1, 1, 1, 1])
    assert (constant.estimate, constant.low, constant.high) == (0.5, 0.5, 0.5)
    assert delong_test(labels, [1, 2, 3, 4], [4, 3, 2, 1]).p_value == 0.0


@pytest.mark.parametrize("labels", [[], [1, 1, 1], [0, 0]])
def test_one_class_gives_nan(labels):
    scores = np.arange(len(labels))
    assert np.isnan(auc_interval(labels, scores).estimate)
    assert np.isnan(delong_test(labels, scores, scores).p_value)


def test_a_single_positive_has_an_area_but_no_interval():
    interval = auc_interval([0, 0, 1], [1, 2, 3])
    assert interval.estimate == 1.0
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0, np.nan]), "1 of 2 are NaN"),
        (([0, 2], [0, 1]), "labels must be 0 or 1"),
        (([0, 1], [0, 1, 2]), r"got \(2,\) and \(3,\)"),
        (([0, 1], [0, 1], 1.0), r"level must lie inside \(0, 1\); got 1"),
        (([0, 1], [0, 1], 0.9, "log"), "scale must be logit or plain; got 'log'"),
    ],
)
def test_auc_interval_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        auc_interval(*arguments)


def test_paired_t_test_equals_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.random(6), generator.random(6)
    expected = stats.ttest_rel(a, b)
    test = paired_t_test(a, b)
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_paired_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, s 1, t = 2 sqrt(3) on 2 degrees: p = 1 - t / sqrt(2 + t^2)
    test = paired_t_test([2, 4, 6], [1, 2, 3])
    assert test.difference == 2
    assert test.statistic == pytest.approx(np.sqrt(12))
    assert test.p_value == pytest.approx(1 - np.sqrt(12 / 14))


def test_paired_t_test_without_variance_or_pairs():
    assert paired_t_test([0.1, 0.2, 0.7], [0.1, 0.2, 0.7]).p_value == 1.0
    constant = paired_t_test(np.array([0.1, 0.2, 0.7]) + 0.1, [0.1, 0.2, 0.7])
    assert (constant.statistic, constant.p_value) == (np.inf, 0.0)
    single = paired_t_test([0.8], [0.7])
    assert single.difference == pytest.approx(0.1)
    assert np.isnan(single.p_value)
    assert np.isnan(single.low)


def test_paired_t_test_refuses_unequal_lengths_and_nan():
    with pytest.raises(ValueError, match="one value per seed each; got 2 and 3"):
        paired_t_test([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="b must be a list of finite numbers"):
        paired_t_test([1, 2], [1, np.nan])


def test_mean_interval_equals_scipy():
    values = [0.81, 0.815, 0.807]
    interval = mean_interval(values, level=0.9)
    low, high = stats.t.interval(0.9, 2, np.mean(values), stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.standard_error == pytest.approx(stats.sem(values))
    assert np.isnan(mean_interval([0.5]).low)


def test_bootstrap_agrees_with_delong_and_repeats():
    labels, a, _ = scored_rows(4, rows=400, ties=False)
    exact = auc_interval(labels, a, scale="plain")
    drawn = bootstrap_interval(auc, [labels, a], samples=400, seed=3)
    assert drawn.estimate == auc(labels, a)
    assert drawn.standard_error == pytest.approx(exact.standard_error, rel=0.12)
    assert drawn.low == pytest.approx(exact.low, abs=0.015)
    assert drawn == bootstrap_interval(auc, [labels, a], samples=400, seed=3)
    assert drawn != bootstrap_interval(auc, [labels, a], samples=400, seed=4)


def test_bootstrap_draws_whole_clusters():
    # Rows of a cluster are copies: as many independent values as clusters, not as rows.
    generator = np.random.default_rng(0)
    values = np.repeat(generator.standard_normal(100), 16)
    clusters = np.repeat(generator.permutation(100), 16)
    order = generator.permutation(1600)
    interval = bootstrap_interval(
        np.mean, [values[order]], clusters=clusters[order], samples=500, seed=1
    )
    assert interval.standard_error == pytest.approx(values.std() / 10, rel=0.15)
    rows = bootstrap_interval(np.mean, [values[order]], samples=500, seed=1)
    assert rows.standard_error == pytest.approx(values.std() / 40, rel=0.15)


def test_bootstrap_of_a_group_metric_runs_on_groups():
    labels, a, _ = scored_rows(1, rows=300)
    users = np.arange(300) % 30
    interval = bootstrap_interval(gauc, [labels, a, users], clusters=users, samples=100)
    assert interval.low < interval.estimate < interval.high


def test_bootstrap_leaves_undefined_draws_out():
    interval = bootstrap_interval(auc, [[0, 1, 0], [1, 2, 3]], samples=200)
    assert 0 <= interval.low <= interval.high <= 1
    undefined = bootstrap_interval(auc, [[1, 1], [1, 2]], samples=5)
    assert np.isnan(undefined.low)


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match=r"arrays must have one length above 0; got \[1, 2\]"):
        bootstrap_interval(log_loss, [[0, 1], [1]])
    with pytest.raises(ValueError, match="samples must be at least 2; got 1"):
        bootstrap_interval(log_loss, [[0, 1], [1, 2]], samples=1)
    with pytest.raises(ValueError, match=r"clusters must be \[2\]"):
        bootstrap_interval(log_loss, [[0, 1], [1, 2]], clusters=[1])


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1 -> .04, .06, .06, .06
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_does_not_count_missing_comparisons():
    adjusted = holm([np.nan, 0.01, 0.04])
    assert np.isnan(adjusted[0])
    assert adjusted[1:].tolist() == pytest.approx([0.02, 0.04])
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\]"):
        holm([1.5])
