import math

import pytest
from scipy import stats

from rankloom.report.seeds import paired_difference, summarise


def test_mean_and_deviation_by_hand() -> None:
    # mean 3; squared distances 4 + 0 + 4 over n - 1 = 2: variance 4
    summary = summarise({2: 3.0, 1: 1.0, 3: 5.0})
    assert (summary.mean, summary.deviation, summary.count) == (3.0, 2.0, 3)
    assert list(summary.values) == [1, 2, 3]
    assert summary.complete


def test_one_seed_has_no_deviation() -> None:
    summary = summarise({7: 0.5})
    assert summary.mean == 0.5
    assert math.isnan(summary.deviation)


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_undefined_values_are_left_out_and_counted(undefined: float) -> None:
    summary = summarise({1: 0.4, 2: undefined, 3: 0.6})
    assert summary.mean == pytest.approx(0.5)
    assert summary.deviation == pytest.approx(math.sqrt(0.02))
    assert summary.count == 2
    assert not summary.complete


def test_nothing_defined() -> None:
    summary = summarise({1: math.nan})
    assert math.isnan(summary.mean)
    assert (summary.count, summary.complete) == (0, False)


def test_paired_difference_by_hand() -> None:
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees
    # of freedom, whose two-sided p is 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)
    difference = paired_difference({1: 2.0, 2: 4.0, 3: 6.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    assert difference.mean == 2.0
    assert difference.seeds == 3
    assert difference.p_value == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)


def test_only_common_defined_seeds_count() -> None:
    ours = {1: 0.70, 2: 0.72, 3: math.nan, 5: 0.90, 6: 0.75}
    theirs = {1: 0.69, 2: 0.70, 3: 0.10, 4: 0.10, 6: 0.74}
    difference = paired_difference(ours, theirs)
    assert difference.seeds == 3
    expected = stats.ttest_rel([0.70, 0.72, 0.75], [0.69, 0.70, 0.74]).pvalue
    assert difference.p_value == pytest.approx(expected)


def test_one_common_seed_has_a_difference_and_no_test() -> None:
    difference = paired_difference({1: 0.8, 2: 0.9}, {1: 0.7, 3: 0.9})
    assert difference.mean == pytest.approx(0.1)
    assert difference.seeds == 1
    assert math.isnan(difference.p_value)


def test_no_common_seed() -> None:
    difference = paired_difference({1: 0.8}, {2: 0.7})
    assert difference.seeds == 0
    assert math.isnan(difference.mean)
    assert math.isnan(difference.p_value)


def test_equal_values_are_no_difference() -> None:
    difference = paired_difference({1: 0.8, 2: 0.9}, {1: 0.8, 2: 0.9})
    assert (difference.mean, difference.p_value) == (0.0, 1.0)


def test_a_constant_difference_leaves_nothing_to_test() -> None:
    difference = paired_difference({1: 0.75, 2: 0.85, 3: 0.95}, {1: 0.65, 2: 0.75, 3: 0.85})
    assert difference.mean == pytest.approx(0.1)
    assert math.isnan(difference.p_value)
