"""Statistics over seeds: means, deviations, paired differences."""

import math
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from rankloom.config import Config
from rankloom.evaluation.significance import paired_t_test
from rankloom.runs.record import Number


class Summary(Config):
    """One metric of one recipe over its seeds."""

    mean: Number
    """Mean over the seeds whose value is defined; NaN when none is."""
    deviation: Number
    """Sample standard deviation (n - 1); NaN with fewer than two defined values."""
    values: dict[int, Number]
    """Value by seed, undefined ones included."""

    @property
    def count(self) -> int:
        """Seeds whose value is defined."""
        return sum(not math.isnan(value) for value in self.values.values())

    @property
    def complete(self) -> bool:
        """Whether every seed's value is defined, and there is one."""
        return self.count == len(self.values) > 0


class Difference(Config):
    """One metric of one recipe minus that of another, paired by seed."""

    mean: Number
    """Mean of the differences over the common seeds; NaN when there is none."""
    seeds: int = Field(ge=0)
    """Common seeds."""
    p_value: Number
    """Two-sided paired t-test; NaN with fewer than two common seeds, or without any variation."""
    p_adjusted: Number = math.nan
    """The p-value after Holm's adjustment over the rows of a table."""
    low: Number = math.nan
    """Lower end of the mean's 95% t interval over the seeds; NaN where the p-value is."""
    high: Number = math.nan
    """Upper end."""


def summarise(values: Mapping[int, float]) -> Summary:
    """Mean and deviation of a metric by seed; an infinite value counts as undefined."""
    kept = {
        seed: value if math.isfinite(value) else math.nan for seed, value in sorted(values.items())
    }
    defined = np.array([value for value in kept.values() if not math.isnan(value)])
    return Summary(
        mean=float(defined.mean()) if defined.size else math.nan,
        deviation=float(defined.std(ddof=1)) if defined.size > 1 else math.nan,
        values=kept,
    )


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Difference `ours - theirs` over the seeds at which both are defined.

    Differences that do not vary (two deterministic models) leave nothing to test: the p-value is 1
    when they are zero, and undefined otherwise.
    """
    common = [
        seed
        for seed in sorted(ours.keys() & theirs.keys())
        if math.isfinite(ours[seed]) and math.isfinite(theirs[seed])
    ]
    if not common:
        return Difference(mean=math.nan, seeds=0, p_value=math.nan)
    test = paired_t_test([ours[seed] for seed in common], [theirs[seed] for seed in common])
    if test.standard_error == 0 and test.difference:
        return Difference(mean=test.difference, seeds=len(common), p_value=math.nan)
    return Difference(
        mean=test.difference,
        seeds=len(common),
        p_value=test.p_value,
        low=test.low,
        high=test.high,
    )
