"""Sinkhorn's iteration: positive matrices brought near to rows and columns that sum to one."""

import torch
from jaxtyping import Float
from torch import Tensor


def sinkhorn(
    logits: Float[Tensor, "*shape rows columns"], num_steps: int
) -> Float[Tensor, "*shape rows columns"]:
    """Divide exp(logits) by its columns' sums, then by its rows' sums, `num_steps` times.

    Source: Sinkhorn and Knopp, Pacific Journal of Mathematics 21, 1967. Square matrices tend to
    doubly stochastic ones; as the division of rows comes last, rows sum to one after any number of
    steps. It runs on logarithms, where no maximum has to be taken out first and entries however
    small neither vanish nor divide zero by zero.

    Args:
        logits: logarithms of the matrices' entries, any leading shape.
        num_steps: steps, each a division of the columns and one of the rows.

    Returns:
        The matrices, float32 or wider, under autocast too.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for _ in range(num_steps):
        logs = logs.log_softmax(-2).log_softmax(-1)
    return logs.exp()


LOWEST = -40.0
"""Logarithm, relative to its column's largest entry, below which an entry counts as that."""


def sinkhorn_of_many(
    logits: Float[Tensor, "*shape rows columns"], num_steps: int
) -> Float[Tensor, "*shape rows columns"]:
    """`sinkhorn` of many small matrices, one for every token, say; many times faster there.

    A step multiplies columns, then rows, by numbers; only these change from step to step, and run
    over all matrices at once. Entries below exp(-40) of the largest one in their column are taken
    as that, so that nothing is divided by zero.

    Args:
        logits: logarithms of the matrices' entries, at least one leading axis.
        num_steps: steps, each a division of the columns and one of the rows.

    Returns:
        The matrices, float32 or wider, under autocast too.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # What a column is multiplied with drops out in the first step.
    logs = (logs - logs.detach().amax(-2, keepdim=True)).clamp_min(LOWEST)
    entries = logs.flatten(0, -3).movedim(0, -1).contiguous().exp()  # [rows, columns, matrices]
    row_scale = torch.ones_like(entries[:, :1])
    for _ in range(num_steps):
        column_scale = (entries * row_scale).sum(0, keepdim=True).reciprocal()
        row_scale = (entries * column_scale).sum(1, keepdim=True).reciprocal()
    scaled = entries * row_scale * column_scale
    return scaled.movedim(-1, 0).reshape(logits.shape)
