"""Policies fitted on validation rows."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rankloom.evaluation import metrics
from rankloom.evaluation.depth_fit import (
    calibrate,
    exit_signals,
    fit_ensemble,
    fit_halting,
    mean_of_depths,
    row_losses,
)
from rankloom.evaluation.depth_policy import (
    ChangeExit,
    EntropyExit,
    HaltingExit,
    apply_policy,
    halting_features,
)
from rankloom.evaluation.protocol import Predictions

COSTS = (10.0, 14.0, 20.0, 21.0)


def rows(count: int = 400, depths: int = 4, tasks: int = 1) -> tuple[np.ndarray, Predictions]:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(count, tasks))
    labels = (generator.random((count, tasks)) < expit(truth)).astype(np.float32)
    logits = truth + 0.7 * generator.normal(size=(depths, count, tasks))
    return logits, Predictions(logits=logits[0].astype(np.float32), labels=labels)


def mean_cost(policy, logits):
    _, depth = apply_policy(policy, torch.from_numpy(logits))
    return np.asarray(COSTS)[depth.numpy()].mean()


@pytest.mark.parametrize("exit_type", [ChangeExit, EntropyExit])
@pytest.mark.parametrize("target", [14.0, 15.3, 17.0, 20.99])
def test_a_threshold_is_the_smallest_that_keeps_to_the_cost(exit_type, target):
    logits, _ = rows()
    policy = calibrate(exit_type(threshold=0), logits, COSTS, target)
    assert policy is not None
    assert mean_cost(policy, logits) <= target + 1e-9
    # A hair lower and one row more goes on, past the target.
    lower = policy.model_copy(update={"threshold": float(np.nextafter(policy.threshold, 0))})
    assert mean_cost(lower, logits) > target


def test_what_cannot_be_so_cheap_or_so_dear():
    logits, _ = rows()
    # No change is known at the shallowest depth.
    assert calibrate(ChangeExit(threshold=0), logits, COSTS, 13.9) is None
    assert calibrate(EntropyExit(threshold=0), logits, COSTS, 9.9) is None
    cheapest = calibrate(EntropyExit(threshold=0), logits, COSTS, 10.0)
    assert mean_cost(cheapest, logits) == pytest.approx(10.0)
    dearest = calibrate(ChangeExit(threshold=0.5), logits, COSTS, 30.0)
    assert dearest.threshold == 0
    with pytest.raises(ValueError, match="costs must rise, one for each of 4 depths; got"):
        calibrate(ChangeExit(threshold=0), logits, (1, 2, 2, 3), 2)
    with pytest.raises(ValueError, match="a threshold needs rows"):
        calibrate(ChangeExit(threshold=0), logits[:, :0], COSTS, 15)


def test_equal_signals_stop_together():
    logits = np.zeros((4, 10, 1))
    policy = calibrate(EntropyExit(threshold=0), logits, COSTS, 20.5)
    assert mean_cost(policy, logits) == 10.0
    assert exit_signals(policy, logits) == pytest.approx(np.full((3, 10), math.log(2)))


def test_row_losses_are_means_over_known_tasks():
    logits, found = rows(count=5, depths=2, tasks=2)
    mask = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], np.bool_)
    masked = Predictions(found.logits, found.labels, mask)
    losses = row_losses(logits, masked)
    for depth in range(2):
        for row in range(5):
            each = [
                metrics.log_loss([found.labels[row, task]], [logits[depth, row, task]])
                for task in range(2)
                if mask[row, task]
            ]
            expected = np.mean(each) if each else np.nan
            assert losses[depth, row] == pytest.approx(expected, nan_ok=True)


def test_halting_units_are_scikit_learns():
    logits, found = rows()
    units = fit_halting(logits, found, margin=0.02)
    assert [len(unit.weights) for unit in units] == [2, 5, 8]
    losses = row_losses(logits, found)
    x = halting_features(torch.from_numpy(logits[:2])).numpy()
    z = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(max_iter=1000).fit(z, losses[2] < losses[1] - 0.02)
    found_p = exit_signals(HaltingExit(threshold=0, units=units), logits)[1]
    assert found_p == pytest.approx(model.predict_proba(z)[:, 1], abs=1e-9)


def test_halting_finds_the_rows_that_going_on_helps():
    generator = np.random.default_rng(3)
    y = (generator.random(2000) < 0.5).astype(np.float32)
    sign = 2 * y - 1
    # Unsure rows get better with depth, sure ones worse.
    unsure = generator.random(2000) < 0.5
    first = np.where(unsure, 0.1, 3.0) * sign
    second = np.where(unsure, 2.0, -1.0) * sign
    logits = np.stack([first, second])[..., None]
    found = Predictions(first[:, None].astype(np.float32), y[:, None])
    units = fit_halting(logits, found)
    signal = exit_signals(HaltingExit(threshold=0, units=units), logits)[0]
    assert signal[unsure].min() > 0.9
    assert signal[~unsure].max() < 0.1


def test_one_answer_gives_a_smoothed_rate_and_unknown_rows_do_not_count():
    logits = np.zeros((2, 9, 1))
    mask = np.arange(9)[:, None] < 7
    found = Predictions(np.zeros((9, 1), np.float32), np.ones((9, 1), np.float32), mask)
    (unit,) = fit_halting(logits, found)
    assert unit.weights == (0.0, 0.0)
    assert expit(unit.bias) == pytest.approx(0.5 / 8)
    weight = np.arange(9, dtype=np.float32)
    heavy = Predictions(found.logits, found.labels, mask, weight=weight)
    (unit,) = fit_halting(logits, heavy)
    assert expit(unit.bias) == pytest.approx(0.5 / (weight[:7].sum() + 1))
    (unit,) = fit_halting(logits + np.array([0, 1])[:, None, None], heavy)  # all rows get better
    assert expit(unit.bias) == pytest.approx(21.5 / 22)


def test_rows_of_no_weight_are_as_good_as_absent():
    logits, found = rows(count=80, depths=3)
    weight = np.where(np.arange(80) < 60, 1.5, 0).astype(np.float32)
    logits[:, 60:] *= 50  # would change how features are standardised
    halved = Predictions(found.logits, found.labels, weight=weight)
    kept = Predictions(found.logits[:60], found.labels[:60], weight=weight[:60])
    assert np.isnan(row_losses(logits, halved)[:, 60:]).all()
    assert fit_halting(logits, halved) == fit_halting(logits[:, :60], kept)
    assert fit_ensemble(logits, halved) == fit_ensemble(logits[:, :60], kept)
    # One answer among the rows that count, whatever the others say.
    same = np.zeros((2, 4, 1))
    same[1, 2:] = 1
    labelled = Predictions(
        same[0].astype(np.float32), np.ones((4, 1), np.float32), weight=np.float32([1, 2, 0, 0])
    )
    (unit,) = fit_halting(same, labelled)
    assert expit(unit.bias) == pytest.approx(0.5 / 4)


def test_weights_enter_as_repeated_rows():
    logits, found = rows(count=60, depths=2)
    twice = np.r_[np.arange(60), np.arange(20)]
    weight = np.where(np.arange(60) < 20, 2, 1).astype(np.float32)
    heavy = Predictions(found.logits, found.labels, weight=weight)
    repeated = Predictions(found.logits[twice], found.labels[twice])
    (a,), (b,) = fit_halting(logits, heavy), fit_halting(logits[:, twice], repeated)
    # Standardised over other rows, so that the penalty is not quite the same.
    assert (*a.weights, a.bias) == pytest.approx((*b.weights, b.bias), rel=0.2, abs=0.05)
    c, d = fit_ensemble(logits, heavy), fit_ensemble(logits[:, twice], repeated)
    assert c.weights == pytest.approx(d.weights, abs=1e-4)


def test_ensemble_weights_are_those_of_a_grid():
    logits, found = rows(count=300, depths=2)
    fitted = fit_ensemble(logits, found)
    y = found.labels[:, 0]

    def loss(weights):
        return metrics.log_loss(y, np.tensordot(weights, logits[..., 0], 1))

    grid = [(a, b) for a in np.linspace(0, 2, 41) for b in np.linspace(0, 2, 41)]
    assert loss(fitted.weights) <= min(map(loss, grid)) + 1e-9
    assert loss(fitted.weights) < loss(mean_of_depths(2).weights)


def test_a_depth_that_only_harms_has_no_weight():
    logits, found = rows(count=300, depths=2)
    logits[1] = logits[1] - 5 * found.labels  # low where the label is 1
    assert fit_ensemble(logits, found).weights[1] == 0
    # Nothing helps: the mean.
    assert fit_ensemble(-np.abs(logits) * (2 * found.labels - 1), found) == mean_of_depths(2)


def test_rows_without_labels_are_refused():
    logits, found = rows(count=4)
    with pytest.raises(ValueError, match="these rows have no labels; depth policies are fitted"):
        fit_halting(logits, Predictions(found.logits))
    none = Predictions(found.logits, found.labels, np.zeros((4, 1), np.bool_))
    unweighted = Predictions(found.logits, found.labels, weight=np.zeros(4, np.float32))
    for nothing in (none, unweighted):
        with pytest.raises(ValueError, match="units need rows of weight whose label is known; got"):
            fit_halting(logits, nothing)
        with pytest.raises(ValueError, match="needs rows of weight whose label is known; got none"):
            fit_ensemble(logits, nothing)
