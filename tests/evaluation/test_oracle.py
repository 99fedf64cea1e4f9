"""Oracles over depths, and noise in their place."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankloom.evaluation.metrics import auc
from rankloom.evaluation.oracle import (
    NOISES,
    depth_subsets,
    noised_copies,
    noised_oracle_auc,
    oracle_auc_by_count,
    oracle_auc_of_size,
    oracle_scores,
)
from rankloom.evaluation.oracle_figures import measure_oracle

SCORES = np.array([[0.1, 0.9, -1.0, 2.0], [0.5, 0.2, -3.0, 1.0], [-0.5, 0.4, 0.0, 3.0]])
LABELS = np.array([1, 0, 0, 1])


def noisy_depths(
    informative: float, rows: int = 4000, depths: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """A score and others that differ from it; by `informative` they know more of the label."""
    generator = np.random.default_rng(1)
    truth = generator.normal(size=rows)
    y = (generator.random(rows) < 1 / (1 + np.exp(-2 * truth))).astype(np.float32)
    first = truth + generator.normal(size=rows)
    others = [
        first + 0.4 * generator.normal(size=rows) + informative * (2 * y - 1)
        for _ in range(depths - 1)
    ]
    return np.stack([first, *others]), y


def test_the_oracle_takes_the_largest_of_a_positive_and_the_least_of_a_negative():
    assert oracle_scores(SCORES, LABELS).tolist() == [0.5, 0.2, -3.0, 3.0]
    tasks = np.stack([SCORES, -SCORES], -1)  # [depths, rows, tasks]
    both = oracle_scores(tasks, np.stack([LABELS, 1 - LABELS], 1))
    assert both[:, 0].tolist() == [0.5, 0.2, -3.0, 3.0]
    assert both[:, 1].tolist() == [-0.5, -0.2, 3.0, -3.0]


def test_it_has_the_least_loss_of_every_row():
    chosen = oracle_scores(SCORES, LABELS)
    signs = 2 * LABELS - 1
    losses = np.log1p(np.exp(-signs * SCORES))
    assert np.log1p(np.exp(-signs * chosen)) == pytest.approx(losses.min(0))


def test_auc_by_count_is_that_of_every_prefix():
    s, y = noisy_depths(0.0, rows=60)
    expected = [
        roc_auc_score(y, [max(c) if one else min(c) for c, one in zip(s[:k].T, y, strict=True)])
        for k in (1, 2, 3)
    ]
    assert oracle_auc_by_count(s, y) == pytest.approx(expected)
    assert np.isnan(oracle_auc_by_count(s, np.ones(60))).all()
    assert np.isnan(oracle_auc_by_count(s[:, :0], [])).all()
    weight = np.where(np.arange(60) < 30, 2.0, 1.0)
    twice = np.r_[np.arange(60), np.arange(30)]
    assert oracle_auc_by_count(s, y, weight) == pytest.approx(
        oracle_auc_by_count(s[:, twice], y[twice])
    )


def test_a_fixed_number_of_depths_looks_at_every_subset():
    assert depth_subsets(3, 2) == [(0, 1), (0, 2), (1, 2)]
    s, y = noisy_depths(0.1, rows=80)
    found = oracle_auc_of_size(s, y, 2)
    expected = [
        roc_auc_score(y, np.where(y == 1, s[[a, b]].max(0), s[[a, b]].min(0)))
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert found == pytest.approx(expected)
    assert oracle_auc_of_size(s, y, 1) == pytest.approx([roc_auc_score(y, row) for row in s])
    assert oracle_auc_of_size(s, y, 3) == pytest.approx([oracle_auc_by_count(s, y)[-1]])


def test_many_subsets_are_sampled_without_repeats():
    found = depth_subsets(12, 4, most=10, seed=3)
    assert len(set(found)) == 10
    assert all(len(set(subset)) == 4 and max(subset) < 12 for subset in found)
    assert found == depth_subsets(12, 4, most=10, seed=3) != depth_subsets(12, 4, most=10, seed=4)


@pytest.mark.parametrize("noise", NOISES)
def test_copies_exchange_differences_between_rows(noise):
    s, _ = noisy_depths(0.0, rows=230)
    copies = noised_copies(s, noise, np.random.default_rng(0), bin_rows=10)
    assert (copies[0] == s[0]).all()
    for depth in (1, 2):
        given, had = copies[depth] - s[0], s[depth] - s[0]
        assert np.sort(given) == pytest.approx(np.sort(had))
        assert (np.abs(given - had) > 1e-9).mean() > 0.5


def test_bins_keep_differences_with_the_score_and_joint_ones_together():
    generator = np.random.default_rng(5)
    base = generator.normal(size=2000)
    # The second depth shrinks the score; the third differs as the second does, twice as much.
    difference = -0.5 * base + 0.01 * generator.normal(size=2000)
    s = np.stack([base, base + difference, base + 2 * difference])
    joint, apart, anywhere = (noised_copies(s, noise, np.random.default_rng(0)) for noise in NOISES)
    for copies in (joint, apart):
        assert np.corrcoef(copies[1] - base, base)[0, 1] < -0.98
    assert abs(np.corrcoef(anywhere[1] - base, base)[0, 1]) < 0.1
    assert joint[2] - base == pytest.approx(2 * (joint[1] - base))
    assert not np.allclose(apart[2] - base, 2 * (apart[1] - base))


def test_any_reference_can_be_copied():
    copies = noised_copies(SCORES, "anywhere", np.random.default_rng(0), reference=2)
    assert (copies[2] == SCORES[2]).all()
    assert np.sort(copies[0] - SCORES[2]) == pytest.approx(np.sort(SCORES[0] - SCORES[2]))


def test_depths_that_know_nothing_more_have_the_headroom_of_noise():
    s, y = noisy_depths(0.0)
    oracle = oracle_auc_by_count(s, y)
    assert oracle[-1] > oracle[0] + 0.05  # a large headroom, all of it choice
    drawn = noised_oracle_auc(s, y, draws=30)
    assert drawn.shape == (30, 3)
    assert drawn[:, 0] == pytest.approx(oracle[0])
    for count in (1, 2):
        error = drawn[:, count].std()
        assert abs(oracle[count] - drawn[:, count].mean()) < 4 * error


def test_depths_that_know_more_have_more_headroom_than_noise():
    s, y = noisy_depths(0.1)
    drawn = noised_oracle_auc(s, y, draws=10)
    assert (oracle_auc_by_count(s, y)[1:] > drawn[:, 1:].max(0) + 0.01).all()


def true_last() -> tuple[np.ndarray, np.ndarray]:
    """The last depth is the true logit, the first is that and noise."""
    generator = np.random.default_rng(4)
    truth = 1.5 * generator.normal(size=6000)
    y = (generator.random(6000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    return np.stack([truth + generator.normal(size=6000), truth]), y


def test_noise_around_the_best_depth_leaves_no_headroom():
    s, y = true_last()
    oracle = oracle_auc_by_count(s, y)[-1]
    around_first, around_best = (
        noised_oracle_auc(s, y, draws=20, reference=depth) for depth in (0, 1)
    )
    assert oracle > around_first[:, -1].max() + 0.02
    assert oracle > auc(y, s[1]) + 0.05  # a gap above the best depth, all of it choice
    assert abs(oracle - around_best[:, -1].mean()) < 4 * around_best[:, -1].std()
    assert abs(oracle - around_best[:, -1].mean()) < 0.005


def test_headroom_above_a_reference_is_a_figure_of_its_own():
    s, y = true_last()
    first, best = (measure_oracle("click", s, y, draws=5, reference=depth) for depth in (0, 1))
    assert first.counts == best.counts  # the noise of the table stays around the shallowest
    for found, depth in ((first, 0), (best, 1)):
        around = found.around_reference
        drawn = noised_oracle_auc(s, y, draws=5, reference=depth)[:, -1]
        assert (around.depth, around.noise.noise) == (depth, "joint")
        assert around.noise.mean == pytest.approx(drawn.mean())
        assert around.noise.low <= around.noise.mean <= around.noise.high
        assert around.headroom == pytest.approx(oracle_auc_by_count(s, y)[-1] - drawn.mean())
    assert first.around_reference.noise == first.counts[-1].noise[0]
    assert first.around_reference.headroom > 0.02
    assert abs(best.around_reference.headroom) < 0.005


def test_copies_that_are_less_alike_offer_more_choice():
    generator = np.random.default_rng(2)
    base = generator.normal(size=3000)
    y = (generator.random(3000) < 0.5).astype(int)
    shared = 0.5 * generator.normal(size=3000)
    s = np.stack([base, base + shared, base + shared + 1e-3 * generator.normal(size=3000)])
    joint, independent = (
        noised_oracle_auc(s, y, noise=noise, draws=5)[:, 2].mean() for noise in NOISES[:2]
    )
    assert independent > joint + 0.02


def test_draws_repeat_with_their_seed():
    s, y = noisy_depths(0.0, rows=200)
    first = noised_oracle_auc(s, y, draws=3, seed=7)
    assert (first == noised_oracle_auc(s, y, draws=3, seed=7)).all()
    assert (first[:, 1:] != noised_oracle_auc(s, y, draws=3, seed=8)[:, 1:]).any()


def test_figures_of_a_task():
    s, y = noisy_depths(0.1, rows=300)
    found = measure_oracle("click", s, y, draws=4)
    assert (found.task, found.rows, found.positives) == ("click", 300, int(y.sum()))
    assert [one.count for one in found.counts] == [1, 2, 3]
    assert [one.subsets for one in found.counts] == [3, 3, 1]
    assert [one.first for one in found.counts] == pytest.approx(oracle_auc_by_count(s, y))
    two = found.counts[1]
    assert two.least <= two.mean <= two.largest
    assert two.mean == pytest.approx(oracle_auc_of_size(s, y, 2).mean())
    assert [band.noise for band in two.noise] == list(NOISES)
    assert all(band.low <= band.mean <= band.high for band in two.noise)
    alone = measure_oracle("click", s, np.zeros(300), draws=2)
    assert np.isnan(alone.counts[2].first)
    assert alone.model_dump(mode="json")["counts"][2]["noise"][0]["low"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oracle_scores(SCORES, [0, 1]), r"over labels \[...\], a depth at least; got \(3"),
        (lambda: oracle_scores(SCORES, [0, 1, 2, 0]), "labels must be 0 or 1"),
        (lambda: oracle_scores(np.zeros((0, 4)), LABELS), r"a depth at least; got \(0, 4\)"),
        (lambda: depth_subsets(3, 4), r"size must be in 1..3, the depths there are; got 4"),
        (lambda: depth_subsets(3, 2, most=0), "most must be at least 1; got 0"),
        (lambda: noised_oracle_auc(SCORES, LABELS, draws=0), "draws must be at least 1; got 0"),
        (
            lambda: noised_copies(SCORES, "none", np.random.default_rng(0)),
            "noise must be one of joint, independent, anywhere; got 'none'",
        ),
        (
            lambda: noised_copies(SCORES, "joint", np.random.default_rng(0), reference=3),
            r"one of the depths of scores \[depths, rows\]; got 3 for shape \(3, 4\)",
        ),
        (
            lambda: noised_copies(SCORES, "joint", np.random.default_rng(0), bin_rows=1),
            "bin_rows must be at least 2; got 1",
        ),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
