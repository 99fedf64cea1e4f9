"""Numeric transforms, and the statistics they need, gathered in one pass over the training rows.

Statistics are partial results that merge: a sum of partial moments, and a seeded sample of bounded
size. Both depend on the sequence of values alone, not on how it was cut into chunks.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rankloom.config import Config
from rankloom.data.hashing import finish
from rankloom.schema import NUM_RESERVED

SAMPLE_SIZE = 2**17
"""Values kept for medians and quantile bins: up to this many present values they are exact."""
_BLOCK = 2**16

Floats = NDArray[np.float64]


@dataclass
class Moments:
    """Count, mean, sum of squared deviations, least and largest value of a stream.

    Values are folded in blocks of 65,536, so that the result has the same bits for every chunk
    size. Partial results of several streams are combined with `merge` (Chan's formula).
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    largest: float = -math.inf
    _pending: list[Floats] = field(default_factory=list)
    _pending_count: int = 0

    def update(self, values: Floats) -> None:
        """Add values; none may be NaN."""
        self._pending.append(values)
        self._pending_count += len(values)
        if self._pending_count >= _BLOCK:
            joined = np.concatenate(self._pending)
            whole = len(joined) // _BLOCK * _BLOCK
            for start in range(0, whole, _BLOCK):
                self._fold(joined[start : start + _BLOCK])
            self._pending = [joined[whole:].copy()]
            self._pending_count = len(joined) - whole

    def merge(self, other: "Moments") -> None:
        """Add what another stream gathered."""
        self.close()
        other.close()
        self._combine(other.count, other.mean, other.squares, other.least, other.largest)

    def close(self) -> None:
        """Fold in what is still pending; call it after the last value."""
        if self._pending_count:
            self._fold(np.concatenate(self._pending))
        self._pending, self._pending_count = [], 0

    @property
    def deviation(self) -> float:
        """Population standard deviation; 0 without values."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def _fold(self, block: Floats) -> None:
        mean = float(block.mean())
        squares = float(np.square(block - mean).sum())
        self._combine(len(block), mean, squares, float(block.min()), float(block.max()))

    def _combine(
        self, count: int, mean: float, squares: float, least: float, largest: float
    ) -> None:
        if count == 0:
            return
        total = self.count + count
        shift = mean - self.mean
        self.mean += shift * (count / total)
        self.squares += squares + shift * shift * (self.count * count / total)
        self.count = total
        self.least, self.largest = min(self.least, least), max(self.largest, largest)


@dataclass
class Sample:
    """A uniform sample of a stream, of bounded size: the values with the smallest seeded keys.

    The key of a value is a hash of its position in the stream, so the sample does not depend on
    chunks. With `size` values or fewer it holds them all. Samples of several streams merge when
    each was given the position of its first value.
    """

    size: int = SAMPLE_SIZE
    position: int = 0
    seed: int = 0
    _values: list[Floats] = field(default_factory=list)
    _keys: list[NDArray[np.uint64]] = field(default_factory=list)
    _held: int = 0
    _limit: int = 2**64 - 1

    def update(self, values: Floats) -> None:
        """Add values; none may be NaN."""
        positions = np.arange(self.position, self.position + len(values), dtype=np.uint64)
        self.position += len(values)
        keys = finish(positions + np.uint64(self.seed) * np.uint64(0x9E3779B97F4A7C15) + 1)
        self._add(values, keys)

    def merge(self, other: "Sample") -> None:
        """Add what another stream gathered."""
        for values, keys in zip(other._values, other._keys, strict=True):
            self._add(values, keys)

    def values(self) -> Floats:
        """The sampled values, sorted."""
        self._shrink()
        return np.sort(np.concatenate(self._values)) if self._values else np.empty(0)

    def _add(self, values: Floats, keys: NDArray[np.uint64]) -> None:
        kept = keys <= np.uint64(self._limit)
        self._values.append(values[kept])
        self._keys.append(keys[kept])
        self._held += int(kept.sum())
        if self._held > 2 * self.size:
            self._shrink()

    def _shrink(self) -> None:
        if self._held <= self.size:
            return
        values, keys = np.concatenate(self._values), np.concatenate(self._keys)
        chosen = np.argpartition(keys, self.size - 1)[: self.size]
        self._values, self._keys, self._held = [values[chosen]], [keys[chosen]], self.size
        self._limit = int(keys[chosen].max())


class NumericTransform(Config):
    """A fitted numeric field: value -> float32."""

    transform: Literal["none", "standardise", "log", "min_max"] = "none"
    """The formula, as in `table_schema.Numeric`."""
    fill: float = 0.0
    """Replaces missing values before the transform."""
    mean: float = 0.0
    """Mean of the present training values."""
    deviation: float = 1.0
    """Standard deviation of the present training values."""
    least: float = 0.0
    """Smallest training value."""
    largest: float = 1.0
    """Largest training value."""

    def apply(self, values: Floats) -> NDArray[np.float32]:
        """Transform values; NaN is missing. A constant column becomes zeros where it is scaled."""
        values = np.where(np.isnan(values), self.fill, values)
        if self.transform == "standardise":
            values = (values - self.mean) / (self.deviation or 1.0)
        elif self.transform == "log":
            values = np.copysign(np.log1p(np.abs(values)), values)
        elif self.transform == "min_max":
            span = (self.largest - self.least) or 1.0
            values = np.clip((values - self.least) / span, 0.0, 1.0)
        return values.astype(np.float32)


def fit_numeric(
    transform: Literal["none", "standardise", "log", "min_max"],
    fill: float | Literal["mean", "median"],
    moments: Moments,
    sample: Sample | None = None,
) -> NumericTransform:
    """Fit a transform on the gathered statistics of present values; unused ones may be empty."""
    moments.close()
    if moments.count == 0:
        return NumericTransform(transform=transform, fill=0.0 if isinstance(fill, str) else fill)
    if fill == "mean":
        number = moments.mean
    elif fill == "median":
        if sample is None:
            raise ValueError("a median needs a sample")
        number = float(np.median(sample.values()))
    else:
        number = float(fill)
    return NumericTransform(
        transform=transform,
        fill=number,
        mean=moments.mean,
        deviation=moments.deviation,
        least=moments.least,
        largest=moments.largest,
    )


class QuantileBins(Config):
    """A fitted quantile transform: value -> id 2 .. bins + 1; missing -> 0."""

    edges: tuple[float, ...] = Field(())
    """Inner edges, strictly rising; a value equal to an edge belongs to the bin above it."""

    @property
    def bins(self) -> int:
        """Number of bins: fewer than asked for when values repeat."""
        return len(self.edges) + 1

    def apply(self, values: Floats) -> NDArray[np.int32]:
        """Bin values; NaN is missing."""
        edges = np.asarray(self.edges, np.float64)
        ids = np.searchsorted(edges, values, side="right").astype(np.int32) + NUM_RESERVED
        ids[np.isnan(values)] = 0
        return ids.astype(np.int32)


def fit_quantiles(sample: Sample, bins: int) -> QuantileBins:
    """Bins of equal counts; edges that repeated values would make empty are left out."""
    values = sample.values()
    if len(values) == 0:
        return QuantileBins()
    at = np.arange(1, bins) / bins
    edges = np.unique(np.quantile(values, at, method="inverted_cdf"))
    edges = edges[edges > values[0]]  # an edge at the least value would leave nothing below it
    return QuantileBins(edges=tuple(float(edge) for edge in edges))


def criteo_ln2(values: Floats) -> NDArray[np.int64]:
    """floor(ln(x)^2) where x > 2, else the integer part of x (cut towards zero).

    The form of the Kaggle winners that FuxiCTR's Criteo configurations use. Negative values keep
    their integer part, each a category of its own. No value may be NaN; missing stays missing.
    """
    large = values > 2
    logarithm = np.log(np.where(large, values, 1.0))
    return np.where(large, np.floor(np.square(logarithm)), np.trunc(values)).astype(np.int64)


def criteo_log2(values: Floats) -> NDArray[np.int64]:
    """floor(log2(x)) where x > 2, else 1.

    The form that the description of Criteo_x4 gives. Zero and negative values become 1 as well. No
    value may be NaN; missing stays missing. Powers of two are exact.
    """
    large = values > 2
    _, exponent = np.frexp(np.where(large, values, 2.0))  # x = m * 2^e with m in [0.5, 1)
    return exponent.astype(np.int64) - 1
