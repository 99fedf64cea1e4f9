"""Cross-entropy over many classes whose logits are never held all at once.

The logits of all items for all positions of a batch are by far the largest tensor of a model that
scores a catalogue. Here they are made for some rows at a time, in memory that stays in the cache,
and the gradient is taken while they are there: three matrix products in all, as with plain
autograd, and none of its memory.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CPU_CHUNK = 2**20
"""Logits held at once on a CPU, in float32."""
HALF_CHUNK = 2**22
"""The same in half precision, where every chunk's share of the gradient is added in a pass of its
own."""
DEVICE_CHUNK = 2**28
"""Logits held at once elsewhere."""
ALIGNED_ROWS = 32
"""Chunks are a multiple of this many rows: the products are up to a fifth faster."""


def linear_cross_entropy(
    x: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "classes dim"],
    targets: Int[Tensor, " rows"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean over rows of -ln softmax(W x + b)[target]; 0 without rows.

    The softmax is computed in float32 (float64 of float64) whatever the precision of the products.

    Args:
        x: what the logits are made of.
        weight: a vector for each class.
        targets: int64 class of each row, from 0.
        bias: a number for each class.
        label_smoothing: share of each target's probability that is spread over all classes.
    """
    if torch.compiler.is_compiling():  # custom gradients cannot be exported
        logits = functional.linear(x, weight, bias).float()
        total = functional.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=label_smoothing
        )
        return total / max(x.shape[0], 1)
    if not torch.is_grad_enabled():  # else the function is told that gradients are wanted
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    loss = _Function.apply(x, weight, targets, bias, label_smoothing)  # type: ignore[no-untyped-call]
    return cast(Tensor, loss)


class _Function(torch.autograd.Function):
    """Loss and gradients in one pass; backward only multiplies them by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        label_smoothing: float,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        rows, classes = x.shape[0], weight.shape[0]
        precision = _product_precision(x)
        exact = torch.promote_types(precision, torch.float32)
        w, features = weight.to(precision), x.to(precision)
        step = max(1, min(_chunk_rows(classes, x.device, half=precision != exact), rows))
        logits = torch.empty(step, classes, dtype=precision, device=x.device)
        loss = torch.zeros((), dtype=exact, device=x.device)
        to_x = torch.empty_like(x) if wanted else None
        to_weight = torch.zeros_like(weight, dtype=exact) if wanted else None
        to_bias = torch.zeros_like(bias, dtype=exact) if bias is not None else None
        for start in range(0, rows, step):
            part, target = features[start : start + step], targets[start : start + step, None]
            z = torch.mm(part, w.T, out=logits[: part.shape[0]])  # [part, classes]
            z = z.to(exact) if bias is None else z.to(exact).add_(bias)
            right = z.gather(1, target)
            if label_smoothing:
                right = torch.lerp(right, z.mean(1, keepdim=True), label_smoothing)
            highest = z.amax(1, keepdim=True)
            p = z.softmax(1)
            # The highest probability is at least 1 / classes, so its logarithm is exact.
            log_sum = highest - p.amax(1, keepdim=True).log()
            loss += (log_sum - right).sum()
            if to_x is None or to_weight is None:
                continue
            if label_smoothing:
                p -= label_smoothing / classes
            p.scatter_add_(1, target, p.new_full(target.shape, label_smoothing - 1.0))
            if to_bias is not None:
                to_bias += p.sum(0)
            p = p.to(precision)
            to_x[start : start + step] = p @ w
            if precision == exact:
                to_weight.addmm_(p.T, part)
            else:
                to_weight += p.T @ part
        count = max(rows, 1)
        if to_x is not None and to_weight is not None:
            ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
            ctx.save_for_backward(
                to_x.div_(count),
                to_weight.div_(count),
                None if to_bias is None else to_bias.div_(count),
            )
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_weight, to_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            to_x * gradient,
            (to_weight * gradient).to(weight_dtype),
            None,
            None if to_bias is None else (to_bias * gradient).to(bias_dtype),
            None,
        )


def _product_precision(x: Tensor) -> torch.dtype:
    """What a matrix product is computed in: autocast's precision where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _chunk_rows(classes: int, device: torch.device, *, half: bool) -> int:
    """Rows whose logits are held at once."""
    on_cpu = HALF_CHUNK if half else CPU_CHUNK
    rows = (on_cpu if device.type == "cpu" else DEVICE_CHUNK) // max(classes, 1)
    return rows - rows % ALIGNED_ROWS if rows > ALIGNED_ROWS else rows
