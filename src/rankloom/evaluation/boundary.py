"""Whom a retrieval model serves badly: targets near the border of two codes, and rare ones.

The held-out targets of a split are sorted by a figure of the target item and cut into tenths; in
each, a metric is averaged over the users, with a bootstrap interval over them. The figures are

- the margin of the item's first code over the second best one, as its tokenizer tells it
  (`Assignment.confidence`): small where the item lies near the border of two clusters;
- the item's training count: how often the training part of the sequences holds it.

A first tenth that is worse by margin may be one of rare items: look at both.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from rankloom.config import Config, parse_config, read_json_values
from rankloom.evaluation.frequency import NUM_GROUPS, frequency_groups
from rankloom.evaluation.significance import bootstrap_interval
from rankloom.runs.atomic import write_text
from rankloom.runs.record import Number

BOUNDARY_FILE = "inspect.json"
"""Name of the figures in their folder."""


class Tenth(Config):
    """The users of one tenth of the targets."""

    number: int = Field(ge=1, le=NUM_GROUPS)
    """1 holds the targets with the smallest values."""
    low: float
    """Smallest value of its targets."""
    high: float
    """Largest value of its targets."""
    users: int
    """Users."""
    mean: Number
    """Mean of the metric over them."""
    mean_low: Number
    """Lower end of its 95% bootstrap interval over users."""
    mean_high: Number
    """Upper end of it."""


class Sorted(Config):
    """A metric over the tenths of the targets, sorted by one figure."""

    figure: str
    """Name of what the targets are sorted by."""
    tenths: tuple[Tenth, ...]
    """Smallest values first; a tenth without targets is left out."""
    difference: Number
    """Mean of the first tenth less that of all others; NaN where there is one tenth only."""
    difference_low: Number
    """Lower end of its 95% bootstrap interval over users."""
    difference_high: Number
    """Upper end of it."""


class BoundaryFigures(Config):
    """`inspect.json` of a retrieval run."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    run_id: str
    """The run."""
    model: str
    """Name of its model."""
    tokenizer: str
    """Kind of its tokenizer; empty where it has none."""
    seed: int
    """Its seed."""
    dataset: str
    """Name of the data set."""
    data_hash: str
    """Its hash."""
    split: str
    """Split of the targets."""
    metric: str
    """What is averaged, such as `recall@10`."""
    users: int
    """Users of the split."""
    sortings: tuple[Sorted, ...]
    """By margin, where the tokenizer tells one, and by training count."""


def metric_by_tenths(
    figure: str, of_target: ArrayLike, metric: ArrayLike, *, samples: int = 1000, seed: int = 0
) -> Sorted:
    """A metric over the tenths of users whose targets are sorted by a figure.

    Targets of one value stay together, so tenths differ in size and one may be empty.

    Args:
        figure: name of what is sorted by.
        of_target: [users] value of each user's target.
        metric: [users] the metric of each user.
        samples: draws of each bootstrap.
        seed: seed of the draws.

    Raises:
        ValueError: there are no users, not one value for each, or a value is NaN.
    """
    values, metrics = np.asarray(of_target, np.float64), np.asarray(metric, np.float64)
    if values.shape != metrics.shape or not values.size:
        raise ValueError(
            f"one {figure} and one metric for each user, at least one user; got {values.shape} "
            f"and {metrics.shape}"
        )
    if np.isnan(values).any():
        raise ValueError(f"{figure} must be numbers; some are NaN")
    groups = frequency_groups(values)
    tenths = []
    for group in np.unique(groups):
        inside = groups == group
        found = bootstrap_interval(_mean, [metrics[inside]], samples=samples, seed=seed)
        tenths.append(
            Tenth(
                number=int(group) + 1,
                low=float(values[inside].min()),
                high=float(values[inside].max()),
                users=int(inside.sum()),
                mean=found.estimate,
                mean_low=found.low,
                mean_high=found.high,
            )
        )
    first = groups == groups.min()
    gap = bootstrap_interval(_less_others, [metrics, first], samples=samples, seed=seed)
    return Sorted(
        figure=figure,
        tenths=tuple(tenths),
        difference=gap.estimate,
        difference_low=gap.low,
        difference_high=gap.high,
    )


def write_boundary(folder: str | Path, figures: BoundaryFigures) -> Path:
    """Write `inspect.json` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / BOUNDARY_FILE
    values = figures.model_dump(mode="json")
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def read_boundary(path: str | Path) -> BoundaryFigures:
    """Read what `write_boundary` wrote, from its file or folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or of another kind.
    """
    given = Path(path)
    file = given / BOUNDARY_FILE if given.is_dir() else given
    return parse_config(BoundaryFigures, read_json_values(file), str(file))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _less_others(metrics: np.ndarray, first: np.ndarray) -> float:
    """NaN where a draw has users of one side only."""
    if first.all() or not first.any():
        return float("nan")
    return float(metrics[first].mean() - metrics[~first].mean())
