"""Statistics over seeds: means, deviations, paired differences, adjusted p-values."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from scipy import stats

from rankloom.config import Config
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


def summarise(values: Mapping[int, float]) -> Summary:
    """Mean and deviation of a metric by seed."""
    defined = np.array([value for value in values.values() if not math.isnan(value)])
    return Summary(
        mean=float(defined.mean()) if defined.size else math.nan,
        deviation=float(defined.std(ddof=1)) if defined.size > 1 else math.nan,
        values=dict(sorted(values.items())),
    )


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Difference `ours - theirs` over the seeds at which both are defined.

    When the differences do not vary (two deterministic models) the t statistic does not exist:
    the p-value is 1 if they are all zero, NaN otherwise.
    """
    common = [
        seed
        for seed in sorted(ours.keys() & theirs.keys())
        if not math.isnan(ours[seed]) and not math.isnan(theirs[seed])
    ]
    if not common:
        return Difference(mean=math.nan, seeds=0, p_value=math.nan)
    differences = np.array([ours[seed] - theirs[seed] for seed in common])
    mean = float(differences.mean())
    if len(common) < 2:
        return Difference(mean=mean, seeds=1, p_value=math.nan)
    if not differences.any():
        return Difference(mean=0.0, seeds=len(common), p_value=1.0)
    # Metrics lie near 1, so that a spread below 1e-12 is rounding and no variation of the models.
    if np.ptp(differences) < 1e-12:
        return Difference(mean=mean, seeds=len(common), p_value=math.nan)
    p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(mean=mean, seeds=len(common), p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests, in the order given.

    Undefined p-values (NaN) are no tests: they stay NaN and do not count.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    floor = 0.0
    for rank, (p, index) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = floor
    return adjusted
