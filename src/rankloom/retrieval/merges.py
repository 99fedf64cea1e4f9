"""SemanticBPE: pairs of adjacent tokens of a semantic id that become one token."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


def apply_merges(tokens: IntArray, merges: IntArray, first_merge: int) -> IntArray:
    """Tokens of many ids with every merge applied, in the order the merges were learned.

    Args:
        tokens: [items, width], 0 after an id's end.
        merges: [merges, 2] pairs of tokens.
        first_merge: token that the first merge makes.

    Returns:
        [items, width], 0 after an id's end.
    """
    if len(merges) == 0:
        return tokens
    raise NotImplementedError
