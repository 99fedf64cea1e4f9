"""Sinkhorn's iteration: positive matrices brought near to rows and columns that sum to one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rankloom.layers.own_operation import own_operation

Logs = Float[Tensor, "rows columns matrices"]


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
    as that, so that nothing is divided by zero. Nothing but the logits is kept for the backward
    pass, which does the steps again. On a CPU that pass is written out, which takes less than half
    the time of following every operation (`docs/lab-notes.md`), is opaque to a compiler, and has no
    second derivative.

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
    logs = logs.flatten(0, -3).movedim(0, -1)  # [rows, columns, matrices]
    if logits.device.type == "cpu" and not torch.compiler.is_exporting():
        out = _scaled(logs, num_steps)
    else:
        out = checkpoint(
            _scaled_plainly, logs, num_steps, use_reentrant=False, preserve_rng_state=False
        )
    return out.movedim(-1, 0).reshape(logits.shape)


def _scaled_plainly(logs: Logs, num_steps: int) -> Logs:
    entries = _entries(logs)
    row_scale = torch.ones_like(entries[:, :1])
    for _ in range(num_steps):
        column_scale = (entries * row_scale).sum(0, keepdim=True).reciprocal()
        row_scale = (entries * column_scale).sum(1, keepdim=True).reciprocal()
    return entries * row_scale * column_scale


@own_operation("sinkhorn")
def _scaled(logs: Tensor, num_steps: int) -> Tensor:
    """`_scaled_plainly` with a gradient of its own."""
    entries = _entries(logs)
    row_scales, column_scales = _scales(entries, num_steps)
    return entries.mul_(row_scales[-1]).mul_(column_scales[-1])


@_scaled.register_fake
def _(logs: Tensor, num_steps: int) -> Tensor:
    return torch.empty_like(logs, memory_format=torch.contiguous_format)


@own_operation("sinkhorn_backward")
def _gradient(gradient: Tensor, logs: Tensor, num_steps: int) -> Tensor:
    """The gradient of the logits, from that of the matrices.

    Backward through c_k = 1 / sum_i E_ij r_(k-1) and r_k = 1 / sum_j E_ij c_k, k from the last step
    to the first; the matrices are E r_K c_K.
    """
    entries = _entries(logs)
    rows, columns = _scales(entries, num_steps)
    of_entries = gradient.contiguous() * entries
    products = of_entries * columns[-1]
    of_rows = products.sum(1, keepdim=True)
    of_columns = torch.mul(of_entries, rows[-1], out=products).sum(0, keepdim=True)
    of_entries = torch.mul(gradient, rows[-1], out=of_entries).mul_(columns[-1])
    for step in range(num_steps, 0, -1):
        of_sums = of_rows.mul_(rows[step]).mul_(rows[step]).neg_()
        of_entries.addcmul_(of_sums, columns[step - 1])
        of_columns += torch.mul(entries, of_sums, out=products).sum(0, keepdim=True)
        of_sums = of_columns.mul_(columns[step - 1]).mul_(columns[step - 1]).neg_()
        of_entries.addcmul_(of_sums, rows[step - 1])
        of_rows = torch.mul(entries, of_sums, out=products).sum(1, keepdim=True)
        of_columns = torch.zeros_like(of_columns)
    # What was raised to LOWEST does not move.
    return of_entries.mul_(entries).masked_fill_(_relative(logs) < LOWEST, 0)


@_gradient.register_fake
def _(gradient: Tensor, logs: Tensor, num_steps: int) -> Tensor:
    return torch.empty_like(logs, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    logs, ctx.num_steps = inputs
    ctx.save_for_backward(logs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (logs,) = ctx.saved_tensors
    return _gradient(gradient, logs, ctx.num_steps), None


_scaled.register_autograd(_backward, setup_context=_keep)


def _entries(logs: Logs) -> Logs:
    """Positive entries."""
    return _relative(logs).clamp_min(LOWEST).exp().contiguous()


def _relative(logs: Logs) -> Logs:
    """The largest of every column is zero: what a column is multiplied with drops out."""
    return logs - logs.detach().amax(0, keepdim=True)


def _scales(
    entries: Logs, num_steps: int
) -> tuple[Float[Tensor, "steps+1 rows 1 n"], Float[Tensor, "steps 1 columns n"]]:
    """What rows, from before the first step on, and columns are multiplied with after each step."""
    num_rows, num_columns, number = entries.shape
    rows = entries.new_ones(num_steps + 1, num_rows, 1, number)
    columns = entries.new_empty(num_steps, 1, num_columns, number)
    products = torch.empty_like(entries)
    for step in range(num_steps):
        torch.mul(entries, rows[step], out=products)
        torch.sum(products, 0, keepdim=True, out=columns[step]).reciprocal_()
        torch.mul(entries, columns[step], out=products)
        torch.sum(products, 1, keepdim=True, out=rows[step + 1]).reciprocal_()
    return rows, columns
