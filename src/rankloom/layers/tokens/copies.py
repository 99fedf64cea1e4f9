"""Some of the tokens, laid out as tokens of their own."""

import torch
from jaxtyping import Float
from torch import Tensor


def copy_tokens(
    x: Float[Tensor, "batch tokens *rest"], start: int, stop: int
) -> Float[Tensor, "batch some_tokens *rest"]:
    """The tokens from `start` up to `stop`, for a linear layer to read; `x` itself if that is all.

    A linear layer copies a plain slice anyway, unless the batch has one row; and an exported model
    that asked whether it has would refuse one row.
    """
    if start == 0 and stop == x.shape[1]:
        return x
    return x[:, start:stop].clone(memory_format=torch.contiguous_format)
