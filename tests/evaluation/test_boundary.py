"""A metric by the tenths of the users' targets."""

import math
from pathlib import Path

import numpy as np
import pytest

from rankloom.evaluation.boundary import (
    BoundaryFigures,
    Tenth,
    metric_by_tenths,
    read_boundary,
    write_boundary,
)


def test_tenths_are_sorted_and_averaged() -> None:
    """Twenty targets in random order: two in each tenth, found where the value is 12 or more."""
    values = np.random.default_rng(0).permutation(20)
    found = metric_by_tenths("margin", values, values >= 12)
    assert [tenth.number for tenth in found.tenths] == list(range(1, 11))
    assert [(tenth.low, tenth.high) for tenth in found.tenths[:2]] == [(0, 1), (2, 3)]
    assert [tenth.users for tenth in found.tenths] == [2] * 10
    assert [tenth.mean for tenth in found.tenths] == [0] * 6 + [1] * 4
    assert found.difference == pytest.approx(0 - 8 / 18)


def test_targets_of_one_value_stay_together() -> None:
    found = metric_by_tenths("training count", [1, 1, 1, 1, 1, 1, 1, 2, 3, 4], np.ones(10))
    assert [(tenth.low, tenth.users) for tenth in found.tenths] == [(1, 7), (2, 1), (3, 1), (4, 1)]
    assert {tenth.mean for tenth in found.tenths} == {1.0}


def test_intervals_hold_the_mean_and_shrink_with_users() -> None:
    def width(users: int) -> float:
        generator = np.random.default_rng(3)
        values, metric = generator.random(users), generator.random(users)
        tenth = metric_by_tenths("margin", values, metric, samples=200).tenths[4]
        assert tenth.mean_low < tenth.mean < tenth.mean_high
        return tenth.mean_high - tenth.mean_low

    assert width(8000) < 0.6 * width(1000)


def test_a_planted_difference_is_seen_and_none_is_not() -> None:
    generator = np.random.default_rng(5)
    margin = generator.random(4000)
    metric = (generator.random(4000) < np.where(margin < 0.1, 0.1, 0.3)).astype(float)
    planted = metric_by_tenths("margin", margin, metric, samples=300)
    assert planted.difference == pytest.approx(-0.2, abs=0.05)
    assert planted.difference_high < 0
    none = metric_by_tenths("margin", generator.permutation(margin), metric, samples=300)
    assert none.difference_low < 0 < none.difference_high


def test_one_tenth_has_no_other_beside_it() -> None:
    found = metric_by_tenths("margin", [0.5, 0.5], [0, 1])
    assert len(found.tenths) == 1
    assert math.isnan(found.difference)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="one margin and one metric for each user"):
        metric_by_tenths("margin", [1, 2], [1])
    with pytest.raises(ValueError, match="at least one user"):
        metric_by_tenths("margin", [], [])
    with pytest.raises(ValueError, match="margin must be numbers; some are NaN"):
        metric_by_tenths("margin", [1, math.nan], [0, 1])
    with pytest.raises(ValueError, match="less than or equal to 10"):
        Tenth(number=11, low=0, high=1, users=1, mean=0, mean_low=0, mean_high=0)


def test_figures_survive_their_file(tmp_path: Path) -> None:
    """NaN too, which JSON does not have."""
    sorting = metric_by_tenths("margin", [0.5, 0.5], [0, 1])
    figures = BoundaryFigures(
        run_id="r",
        model="decoder",
        tokenizer="capsid",
        seed=1,
        dataset="d",
        data_hash="h",
        split="test",
        metric="recall@10",
        users=2,
        sortings=(sorting,),
    )
    file = write_boundary(tmp_path, figures)
    assert "NaN" not in file.read_text(encoding="utf-8")
    back = read_boundary(tmp_path)
    assert back.model_dump(mode="json") == figures.model_dump(mode="json")
    with pytest.raises(FileNotFoundError):
        read_boundary(tmp_path / "nowhere.json")
