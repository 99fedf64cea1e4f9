"""Softmax over what a query may attend to, for many short rows on a CPU."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rankloom.layers.own_operation import own_operation

CHUNK = 2**18
"""Scores that are worked on at a time, so that they stay in a core's cache."""
FUSED = 16
"""Scores of a row below which a compiler's own loop is the faster one."""
HIDDEN = -1e30
"""Added to a hidden score; far below any other, and finite, so that none becomes NaN."""


def masked_softmax(
    scores: Float[Tensor, "*shape"],
    seen: Bool[Tensor, "*#shape"] | None = None,
    axis: int = -1,
) -> Float[Tensor, "*shape"]:
    """Softmax of the scores that are seen; zeros for the others, and where none is seen.

    It is computed in float32 or wider and given in the scores' precision, which autocast leaves
    alone. On a CPU it is one operation: a compiler's own loop over rows of some forty keys takes
    twice the time of torch's kernels, and filling by a mask many times that of adding
    (`docs/lab-notes.md`).

    Args:
        scores: any shape.
        seen: True where a score counts, with as many axes as `scores`; None: everywhere.
        axis: along which the weights add up to one.
    """
    fused = torch.compiler.is_compiling() and scores.shape[axis] < FUSED
    if scores.device.type == "cpu" and not fused and not torch.compiler.is_exporting():
        weights: Tensor = _masked_softmax(scores, seen, axis)
        return weights
    wide = torch.promote_types(scores.dtype, torch.float32)
    if seen is None:
        return scores.softmax(axis, wide).to(scores.dtype)
    # The least number instead of minus infinity: a row without any score stays finite.
    hidden = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return hidden.softmax(axis, wide).masked_fill(~seen, 0).to(scores.dtype)


@own_operation("masked_softmax")
def _masked_softmax(scores: Tensor, seen: Tensor | None, axis: int) -> Tensor:
    weights = torch.empty_like(scores, memory_format=torch.contiguous_format)
    rows = max(CHUNK // max(scores[:1].numel(), 1), 1)
    for start in range(0, scores.shape[0], rows):
        chunk = slice(start, start + rows)
        own = seen if seen is None or seen.shape[0] == 1 else seen[chunk]
        _softmax_into(weights[chunk], scores[chunk], own, axis)
    return weights


def _softmax_into(weights: Tensor, scores: Tensor, seen: Tensor | None, axis: int) -> None:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=seen is not None)
    if seen is None:
        weights.copy_(wide.softmax(axis))
        return
    seen = _once(seen)
    wide += seen.to(wide.dtype).sub_(1).mul_(-HIDDEN)
    weights.copy_(wide.softmax(axis))
    empty = seen.sum(axis, keepdim=True) == 0
    if empty.any():
        weights.masked_fill_(empty, 0)


@_masked_softmax.register_fake
def _(scores: Tensor, seen: Tensor | None, axis: int) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
    ctx.axis = inputs[2]
    ctx.save_for_backward(output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (weights,) = ctx.saved_tensors
    to_scores = torch.ops.aten._softmax_backward_data(gradient, weights, ctx.axis, weights.dtype)
    return to_scores, None, None


_masked_softmax.register_autograd(_backward, setup_context=_keep)


def _once(seen: Tensor) -> Tensor:
    """The mask without the repetitions of an expanded axis."""
    for axis, step in enumerate(seen.stride()):
        if step == 0:
            seen = seen.narrow(axis, 0, 1)
    return seen
