"""Random numbers that are functions of what they belong to, for generated data.

The weight of a value is a hash of the value: no table of weights exists, any number of values can
be had, and the truth behind a generated log is the same for every number of rows.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., OOPSLA 2014): a bijection of 64-bit words."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def planted_normal(values: NDArray[np.int64], *stream: int) -> NDArray[np.float64]:
    """Standard normal numbers, one for every (value, stream), the same wherever it is asked for.

    Args:
        values: any integers, any shape.
        stream: integers that tell apart what the numbers are for.
    """
    start = 0
    for part in stream:
        word = np.array([(start * 31 + part + 1) * _GOLDEN % _WORD], dtype=np.uint64)
        start = int(mix(word)[0])
    words = mix(values.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(start))
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return ndtri(uniform)


def power_law(
    generator: np.random.Generator, rows: int | tuple[int, ...], size: int, exponent: float
) -> NDArray[np.int64]:
    """Ids 0 to size-1 whose frequency falls about like 1 / (id + 1)^exponent.

    Drawn from the continuous power law on [1, size + 1), rounded down.
    """
    uniform = generator.random(rows)
    if exponent == 1.0:
        drawn = np.exp(uniform * np.log(size + 1.0))
    else:
        power = 1.0 - exponent
        drawn = (uniform * ((size + 1.0) ** power - 1.0) + 1.0) ** (1.0 / power)
    return np.minimum(drawn.astype(np.int64), size) - 1


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of a logit."""
    return 1.0 / (1.0 + np.exp(-logits))
