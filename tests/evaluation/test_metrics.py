import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as reference

from rankloom.evaluation.metrics import (
    auc,
    brier_score,
    calibration_ratio,
    expected_calibration_error,
    gauc,
    grouped_auc,
    log_loss,
    normalised_entropy,
)


def slow_auc(labels, scores, weight):
    won = total = 0.0
    for y, s, w in zip(labels, scores, weight, strict=True):
        for other_y, other_s, other_w in zip(labels, scores, weight, strict=True):
            if y == 1 and other_y == 0:
                total += w * other_w
                won += w * other_w * ((s > other_s) + 0.5 * (s == other_s))
    return won / total if total else np.nan


def slow_gauc(labels, scores, groups, weight, weighting):
    aucs, masses = [], []
    for group in set(groups.tolist()):
        rows = groups == group
        value = slow_auc(labels[rows], scores[rows], weight[rows])
        if not np.isnan(value):
            aucs.append(value)
            masses.append(weight[rows].sum() if weighting == "rows" else 1.0)
    return np.average(aucs, weights=masses) if aucs else np.nan


def draw(rows, seed, levels=7):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows).astype(np.float32)
    return labels, generator.integers(0, levels, rows) / 3 - 1.0, generator.random(rows) + 0.1


def test_auc_by_hand():
    # Pairs (positive, negative): .8>.4, .8>.5, .4=.4, .4<.5 -> (1 + 1 + .5 + 0) / 4
    assert auc([1, 0, 1, 0], [0.8, 0.4, 0.4, 0.5]) == 0.625


def test_auc_with_weights_by_hand():
    # (2*1*1 + 2*3*1 + 1*1*.5 + 1*3*0) / (3 * 4)
    assert auc([1, 0, 1, 0], [0.8, 0.4, 0.4, 0.5], [2, 1, 1, 3]) == pytest.approx(8.5 / 12)


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_the_pairwise_definition(seed):
    labels, scores, weight = draw(60, seed)
    assert auc(labels, scores) == pytest.approx(slow_auc(labels, scores, np.ones(60)), abs=1e-13)
    assert auc(labels, scores, weight) == pytest.approx(slow_auc(labels, scores, weight), abs=1e-13)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learn_on_a_million_skewed_rows(ties):
    generator = np.random.default_rng(5)
    labels = (generator.random(1_000_000) < 0.005).astype(np.float32)
    scores = (generator.standard_normal(1_000_000) + labels).astype(np.float32)
    if ties:
        scores = np.round(scores, 2)
    assert abs(auc(labels, scores) - reference.roc_auc_score(labels, scores)) < 1e-9


def test_auc_keeps_logits_apart_that_probabilities_in_float32_would_tie():
    logits = np.array([20.0, 25.0, 30.0], np.float32)
    assert auc([0, 0, 1], logits) == 1.0
    assert auc([0, 0, 1], expit(logits)) < 1.0


@pytest.mark.parametrize("constant", [0.0, -3.5, np.inf])
def test_auc_of_a_constant_prediction_is_one_half(constant):
    assert auc([1, 0, 0, 1, 0], np.full(5, constant)) == 0.5


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1, 1]])
def test_auc_without_both_classes_is_nan(labels):
    assert np.isnan(auc(labels, np.arange(len(labels))))


def test_auc_is_nan_when_all_positives_weigh_nothing():
    assert np.isnan(auc([1, 0, 0], [3, 2, 1], [0, 1, 1]))


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_auc_does_not_depend_on_row_order_or_monotone_maps(seed, rows):
    labels, scores, weight = draw(rows, seed)
    order = np.random.default_rng(seed + 1).permutation(rows)
    value = auc(labels, scores, weight)
    moved = auc(labels[order], np.exp(scores[order]), weight[order])
    flipped = auc(labels, -scores, weight)
    assert moved == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert flipped == pytest.approx(1 - value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "scores", "weight", "message"),
    [
        ([0, 1], [0.1, np.nan], None, "scores must be numbers; 1 of 2 are NaN"),
        ([0, 0.5], [0.1, 0.2], None, "labels must be 0 or 1; got 0.5"),
        ([0, np.nan], [0.1, 0.2], None, "labels must be 0 or 1; got nan"),
        ([0, 1], [0.1, 0.2, 0.3], None, r"equal length; got \(2,\) and \(3,\)"),
        ([[0, 1]], [[0.1, 0.2]], None, r"must be \[rows\]"),
        ([0, 1], [0.1, 0.2], [1], r"weight must have the labels' shape"),
        ([0, 1], [0.1, 0.2], [1, -1], "weight must be finite and not negative"),
        ([0, 1], [0.1, 0.2], [1, np.nan], "weight must be finite and not negative"),
    ],
)
def test_bad_input_is_one_sentence(labels, scores, weight, message):
    with pytest.raises(ValueError, match=message):
        auc(labels, scores, weight)


def test_gauc_by_hand_in_both_weightings():
    # Group 7: AUC 1 over 2 rows; group 3: AUC 1/2 over 3 rows; group 5: one class, skipped.
    labels = [1, 0, 1, 0, 0, 1]
    scores = [0.9, 0.5, 0.1, 0.2, 0.4, 0.3]
    groups = [7, 3, 5, 7, 3, 3]
    scores[5] = 0.45  # between the negatives 0.5 and 0.4
    assert gauc(labels, scores, groups) == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert gauc(labels, scores, groups, "uniform") == pytest.approx(0.75)
    grouped = grouped_auc(labels, scores, groups)
    assert grouped.groups.tolist() == [3, 5, 7]
    assert grouped.rows.tolist() == [3, 1, 2]
    assert grouped.coverage == pytest.approx(5 / 6)
    assert grouped.one_class_groups == pytest.approx(1 / 3)


@pytest.mark.parametrize("weighting", ["rows", "uniform"])
@pytest.mark.parametrize("seed", range(4))
def test_gauc_equals_a_loop_over_groups(weighting, seed):
    labels, scores, weight = draw(150, seed, levels=4)
    groups = np.random.default_rng(seed + 50).integers(-20, 20, 150)
    for given_weight in (None, weight):
        masses = np.ones(150) if given_weight is None else weight
        assert gauc(labels, scores, groups, weighting, given_weight) == pytest.approx(
            slow_gauc(labels, scores, groups, masses, weighting), abs=1e-12
        )


def test_gauc_of_one_group_is_the_auc_and_of_one_row_groups_nan():
    labels, scores, _ = draw(50, 3)
    assert gauc(labels, scores, np.full(50, 9)) == auc(labels, scores)
    assert np.isnan(gauc(labels, scores, np.arange(50)))
    assert np.isnan(gauc([], [], np.zeros(0, np.int64)))


def test_gauc_groups_at_the_ends_of_int64():
    ends = np.iinfo(np.int64)
    assert gauc([0, 1, 1, 0], [1, 2, 1, 2], [ends.min, ends.min, ends.max, ends.max]) == 0.5


def test_gauc_refuses_float_groups_and_unknown_weightings():
    with pytest.raises(ValueError, match="groups must be integer keys; got float64"):
        gauc([0, 1], [0, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="weighting must be rows or uniform; got 'impressions'"):
        gauc([0, 1], [0, 1], [0, 0], "impressions")


def test_log_loss_by_hand_and_against_scikit_learn():
    assert log_loss([1, 0], [0.0, 0.0]) == pytest.approx(np.log(2))
    labels, logits, weight = draw(200, 1, levels=20)  # |logit| < 6: 1 - p is exact enough
    expected = reference.log_loss(labels, expit(logits), sample_weight=weight)
    assert log_loss(labels, logits, weight) == pytest.approx(expected, abs=1e-12)


def test_log_loss_does_not_clip():
    assert log_loss([0, 1], [50.0, 50.0]) == pytest.approx(25.0)
    assert log_loss([0, 1], [-1000.0, 1000.0]) == 0.0
    assert log_loss([0, 1], [-np.inf, np.inf]) == 0.0
    assert log_loss([0, 1], [-np.inf, -np.inf]) == np.inf


def test_normalised_entropy_is_one_for_the_base_rate():
    labels = np.array([1, 0, 0, 0])
    constant = np.full(4, np.log(0.25 / 0.75))
    assert normalised_entropy(labels, constant) == pytest.approx(1.0)
    assert normalised_entropy([1, 0], [2.0, -2.0]) == pytest.approx(
        np.log1p(np.exp(-2)) / np.log(2)
    )


def test_normalised_entropy_with_a_given_base_rate_divides_by_that_constants_loss():
    labels, logits, weight = draw(100, 2)
    constant = np.full(100, np.log(0.2 / 0.8))
    expected = log_loss(labels, logits, weight) / log_loss(labels, constant, weight)
    assert normalised_entropy(labels, logits, weight, base_rate=0.2) == pytest.approx(expected)
    assert np.isfinite(normalised_entropy([0, 0], [1.0, 2.0], base_rate=0.2))


def test_normalised_entropy_undefined_and_refused():
    assert np.isnan(normalised_entropy([0, 0], [1.0, 2.0]))
    with pytest.raises(ValueError, match=r"base_rate must lie inside \(0, 1\); got 1"):
        normalised_entropy([0, 1], [1.0, 2.0], base_rate=1)


def test_calibration_ratio_by_hand():
    assert calibration_ratio([1, 0, 0], [0.6, 0.3, 0.3]) == pytest.approx(1.2)
    assert calibration_ratio([1, 0, 0], [0.6, 0.3, 0.3], [2, 1, 0]) == pytest.approx(1.5 / 2)
    assert np.isnan(calibration_ratio([0, 0], [0.5, 0.5]))


def test_calibration_error_by_hand():
    # Two bins of two rows: |.15 - 0| and |.7 - .5|, half the mass each.
    labels, probabilities = [0, 0, 1, 0], [0.1, 0.2, 0.8, 0.6]
    assert expected_calibration_error(labels, probabilities, bins=2) == pytest.approx(0.175)
    # With weights 1, 1, 2, 4 the midpoints lie at 1/16, 3/16, 4/8 (p .6), 7/8 (p .8).
    weighted = expected_calibration_error(labels, probabilities, [1, 1, 2, 4], bins=2)
    assert weighted == pytest.approx((0.3 + abs(4 * 0.6 + 2 * (0.8 - 1))) / 8)


def test_calibration_error_bins_are_of_equal_mass():
    generator = np.random.default_rng(0)
    probabilities = generator.random(1000) ** 4
    labels = generator.random(1000) < probabilities
    order = np.argsort(probabilities)
    gaps = [
        abs(probabilities[rows].mean() - labels[rows].mean()) * len(rows) / 1000
        for rows in np.array_split(order, 10)
    ]
    assert expected_calibration_error(labels, probabilities) == pytest.approx(sum(gaps))


def test_calibration_error_keeps_ties_together_whatever_the_order():
    labels = np.array([0] * 70 + [1] * 30)
    for order in (np.arange(100), np.arange(100)[::-1]):
        constant = expected_calibration_error(labels[order], np.full(100, 0.3), bins=10)
        assert constant == pytest.approx(0, abs=1e-12)


def test_calibration_error_of_fewer_rows_than_bins_and_of_none():
    assert expected_calibration_error([1], [0.25], bins=10) == pytest.approx(0.75)
    assert np.isnan(expected_calibration_error([], []))
    with pytest.raises(ValueError, match="bins must be at least 1; got 0"):
        expected_calibration_error([1], [0.5], bins=0)


def test_brier_score_equals_scikit_learn():
    labels, logits, weight = draw(100, 4)
    expected = reference.brier_score_loss(labels, expit(logits), sample_weight=weight)
    assert brier_score(labels, expit(logits), weight) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [calibration_ratio, expected_calibration_error, brier_score])
def test_logits_given_as_probabilities_are_refused(metric):
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 2.5 \(logits need a sigmoid first\)"):
        metric([0, 1], [0.5, 2.5])


@pytest.mark.parametrize(
    "metric", [log_loss, normalised_entropy, calibration_ratio, expected_calibration_error]
)
def test_empty_input_is_nan(metric):
    assert np.isnan(metric([], []))
