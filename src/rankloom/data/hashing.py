"""A stable 64-bit hash of values, for hash buckets, text group keys and draws of values.

The hash depends on the bytes of the value's text alone: not on the platform, the version, the
process or the order of rows. Numbers are hashed by their decimal text, so that 5 and "5" agree.

The text is cut into words of 8 bytes (little-endian, the last one padded with zeros); the hash is
h = finish(length), then for every word h = finish((h xor word) * M), where `finish` is the
finalizer of SplitMix64 and M an odd constant.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from rankloom.schema import NUM_RESERVED

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def finish(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of every word: SplitMix64's finalizer, a bijection of 64 bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_values(values: pl.Series) -> NDArray[np.uint64]:
    """Hash every value of a column; all nulls get one value, which callers mask.

    Args:
        values: integers or text (anything else is taken by its polars text).

    Returns:
        uint64 [rows].
    """
    text = values if values.dtype == pl.String else values.cast(pl.String)
    return _hash_text(text.fill_null("").to_arrow(compat_level=pl.CompatLevel.oldest()))


def bucket_ids(values: pl.Series, buckets: int) -> NDArray[np.int32]:
    """Ids of hash buckets: 2 .. buckets + 1, and 0 (padding) for a null.

    Args:
        values: integers or text.
        buckets: number of buckets.

    Returns:
        int32 [rows].
    """
    hashed = hash_values(values) % np.uint64(buckets)
    ids = hashed.astype(np.int32) + np.int32(NUM_RESERVED)
    if values.null_count():
        ids[values.is_null().to_numpy()] = 0
    return ids


def value_draws(values: pl.Series, seed: int) -> NDArray[np.float64]:
    """[rows] uniform numbers in [0, 1) that depend on the seed and each row's value only.

    Rows of one value get one number, whatever is beside them; all nulls get one, which callers
    mask.

    Args:
        values: integers or text.
        seed: another seed gives other numbers.
    """
    start = finish(np.array([seed], dtype=np.int64).view(np.uint64))
    draw = finish(hash_values(values) ^ start) >> np.uint64(11)
    return draw.astype(np.float64) * 2.0**-53


def _hash_text(text: pa.Array) -> NDArray[np.uint64]:
    """Hash the strings of a (large) string array without nulls."""
    rows = len(text)
    if rows == 0:
        return np.empty(0, np.uint64)
    wide = pa.types.is_large_string(text.type)
    _, offset_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets = offsets[text.offset : text.offset + rows + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)  # 8 spare bytes: a word may be read past the end
    if data_buffer is not None:
        data[:-8] = np.frombuffer(data_buffer, np.uint8, last - first, first)
    starts = offsets[:-1] - first
    lengths = np.diff(offsets)
    hashed = finish(lengths.astype(np.uint64))
    active = np.flatnonzero(lengths > 0)
    position = 0
    while len(active):
        begin = starts[active] + position
        left = lengths[active] - position
        word = np.zeros(len(active), np.uint64)
        for byte in range(8):
            value = data[begin + byte].astype(np.uint64)
            value[left <= byte] = 0
            word |= value << np.uint64(8 * byte)
        hashed[active] = finish((hashed[active] ^ word) * _MULTIPLIER)
        position += 8
        active = active[left > 8]
    return hashed
