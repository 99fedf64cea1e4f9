"""Generated logs in Criteo's raw format, shaped like the Kaggle display advertising data.

A line holds the label, 13 integers and 26 categories of 8 hexadecimal digits, separated by tabs;
a missing cell is empty.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from rankloom.data.planted import mix, planted_normal, power_law, sigmoid

BLOCK_ROWS = 2**15
"""Rows drawn from one generator."""
CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Values of the categorical columns in the Kaggle training file."""
MISSING_INTEGERS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.76, 0.22)
"""About the share of missing cells of the integer columns."""
MISSING_CATEGORIES = {
    **dict.fromkeys((2, 3, 11, 15, 20, 23), 0.03),
    **dict.fromkeys((18, 19, 24, 25), 0.44),
    5: 0.12,
    21: 0.76,
}
"""About the share of missing cells of the categorical columns that have any."""
_SPREAD = (1.0, 1.5, 1.2, 1.0, 2.5, 1.6, 1.2, 1.0, 1.6, 0.6, 0.9, 0.8, 1.1)
_CENTRE = (0.7, 1.0, 1.6, 1.6, 7.5, 3.6, 1.8, 2.2, 3.8, 0.3, 0.9, 0.3, 1.7)
_WEIGHTED = 13
_BIAS = -1.5
_HEX = np.frombuffer(b"".join(b"%04x" % word for word in range(2**16)), dtype="S4")

LARGEST = 2**30
"""Cap of the integers: the far tail of a wide column would not fit into 32 bits."""


def criteo_vocabularies(num_values: int) -> tuple[int, ...]:
    """Sizes of the 26 columns whose sum is about `num_values`: large columns are cut, small kept.

    Raises:
        ValueError: fewer values than columns.
    """
    if num_values < len(CARDINALITIES):
        raise ValueError(f"num_values must be at least {len(CARDINALITIES)}; got {num_values}")
    low, high = 1, max(CARDINALITIES)
    while low < high:
        limit = (low + high + 1) // 2
        if sum(min(size, limit) for size in CARDINALITIES) <= num_values:
            low = limit
        else:
            high = limit - 1
    return tuple(min(size, low) for size in CARDINALITIES)


def write_criteo(
    path: str | Path,
    rows: int,
    seed: int = 0,
    *,
    num_values: int = 1_000_000,
    exponent: float = 1.05,
) -> None:
    """Write a log in Criteo's raw format.

    About a quarter of the rows are clicks; single values, pairs of neighbouring columns and the
    integers decide over them.

    Args:
        path: the file.
        rows: number of lines.
        seed: seed of the rows; the planted weights are always the same.
        num_values: values that the categorical columns draw from, all columns together; a short
            file does not meet them all.
        exponent: exponent of the power law of the values' frequency.
    """
    sizes = criteo_vocabularies(num_values)
    with Path(path).open("wb") as stream:
        for block in range(-(-rows // BLOCK_ROWS)):
            frame = _block(sizes, exponent, seed, block).head(rows - block * BLOCK_ROWS)
            frame.write_csv(stream, include_header=False, separator="\t")


def _block(sizes: tuple[int, ...], exponent: float, seed: int, block: int) -> pl.DataFrame:
    generator = np.random.default_rng([seed, block, 26])
    logits = np.full(BLOCK_ROWS, _BIAS)
    arrays: dict[str, pa.Array] = {}
    for index, missing in enumerate(MISSING_INTEGERS):
        value = generator.standard_normal(BLOCK_ROWS, np.float32)
        absent = generator.random(BLOCK_ROWS, np.float32) < missing
        exact = np.exp(_CENTRE[index] + _SPREAD[index] * value)
        number = np.minimum(exact, LARGEST).astype(np.int32)
        if index == 1:
            number -= 3  # the second column holds negative numbers
        arrays[f"i{index + 1}"] = pa.array(number, mask=absent)
        logits += np.where(absent, 0.0, 0.15 * value * (-1) ** index)
    before = np.zeros(BLOCK_ROWS)
    for index, size in enumerate(sizes):
        ids = power_law(generator, BLOCK_ROWS, size, exponent)
        absent = generator.random(BLOCK_ROWS, np.float32) < MISSING_CATEGORIES.get(index, 0.0)
        arrays[f"c{index + 1}"] = _hexadecimal(ids, index, absent)
        if index < _WEIGHTED:
            weight = np.where(absent, 0.0, planted_normal(ids, 26, index))
            logits += 0.35 * weight + 0.25 * weight * before
            before = weight
    label = generator.random(BLOCK_ROWS) < sigmoid(logits)
    columns = {"label": pa.array(label.astype(np.int8)), **arrays}
    frame = pl.from_arrow(pa.table(columns))
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"expected a table; got {type(frame).__name__}")
    return frame


def _hexadecimal(ids: NDArray[np.int64], column: int, absent: NDArray[np.bool_]) -> pa.Array:
    """Ids as 8 hexadecimal digits: a bijection of 32-bit words, another one for every column."""
    start = mix(np.array([column + 1], dtype=np.uint64)).astype(np.uint32)
    words = (ids.astype(np.uint32) + start) * np.uint32(0x9E3779B1)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x85EBCA6B)
    digits = np.empty((len(ids), 2), dtype="S4")
    digits[:, 0] = _HEX[words >> np.uint32(16)]
    digits[:, 1] = _HEX[words & np.uint32(0xFFFF)]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 8
    validity = np.packbits(~absent, bitorder="little")
    return pa.StringArray.from_buffers(
        len(ids), pa.py_buffer(offsets), pa.py_buffer(digits), pa.py_buffer(validity)
    )
