"""Layers over features that are too many to hold for all rows at once."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_CHUNK = 2**22
"""Features held at once on a CPU: enough rows for the product to be worth reading the weights, in
blocks that the allocator keeps for the next chunk."""
DEVICE_CHUNK = 2**28
"""Features held at once elsewhere."""
CACHE_CHUNK = 2**19
"""Features held at once on a CPU where no weights are read again for every chunk, so that a chunk
can be small enough for the cache."""

Features = Callable[[Tensor], Tensor]
"""Features [rows, features] of some rows [rows, ...], each row by itself."""


def linear_over(
    layer: nn.Linear,
    features: Features,
    parameters: Sequence[Tensor],
    x: Float[Tensor, "batch ..."],
) -> Float[Tensor, "batch out"]:
    """`layer(features(x))`, a chunk of rows at a time; backward makes the features again.

    Args:
        layer: the linear layer.
        features: makes the features of some rows; it must not draw random numbers.
        parameters: what `features` uses that trains, besides the rows.
        x: the rows.
    """
    if torch.compiler.is_compiling():  # custom gradients cannot be exported
        return cast(Tensor, layer(features(x)))
    return cast(
        Tensor,
        _LinearOver.apply(features, layer.in_features, x, layer.weight, layer.bias, *parameters),  # type: ignore[no-untyped-call]
    )


def in_chunks(
    function: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    num_features: int,
    *rows: Float[Tensor, "batch ..."],
) -> Tensor:
    """`function(*rows)`, a chunk of rows at a time; backward runs it again.

    It costs one more forward pass and saves nearly all of its memory. Where `function` makes much
    more of a row than it reads and gives, that also saves time: a chunk stays in the cache.

    Args:
        function: gives a tensor [rows, ...] for tensors [rows, ...], each row by itself; it must
            not draw random numbers.
        parameters: what it uses that trains, besides the rows.
        num_features: numbers that it makes of a row and holds at once.
        rows: its arguments.
    """
    if torch.compiler.is_compiling():  # custom gradients cannot be exported
        return function(*rows)
    return cast(Tensor, _InChunks.apply(function, num_features, len(rows), *rows, *parameters))  # type: ignore[no-untyped-call]


def _chunks(x: Tensor, num_features: int, limit: int) -> list[slice]:
    limit = limit if x.device.type == "cpu" else DEVICE_CHUNK
    step = max(1, limit // max(1, num_features))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        num_features: int,
        num_rows: int,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.function, ctx.num_features, ctx.num_rows = function, num_features, num_rows
        device = tensors[0].device.type
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        rows = tensors[:num_rows]
        chunks = _chunks(rows[0], num_features, CACHE_CHUNK)
        parts = [function(*(x[chunk] for x in rows)) for chunk in chunks]
        return torch.cat(parts) if parts else function(*rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, num_rows = ctx.saved_tensors, ctx.num_rows
        rows, parameters = tensors[:num_rows], tensors[num_rows:]
        enabled, dtype = ctx.autocast
        wanted = ctx.needs_input_grad[3:]
        sums = [
            torch.zeros_like(x) if want else None for x, want in zip(tensors, wanted, strict=True)
        ]
        for chunk in _chunks(rows[0], ctx.num_features, CACHE_CHUNK):
            with torch.enable_grad(), torch.autocast(rows[0].device.type, dtype, enabled=enabled):
                parts = [x[chunk].detach() for x in rows]
                read = zip((*parts, *parameters), wanted, strict=True)
                sources = [x.requires_grad_() for x, want in read if want]
                gradients = iter(
                    torch.autograd.grad(ctx.function(*parts), sources, gradient[chunk])
                )
            for number, total in enumerate(sums):
                if total is not None:
                    place = total[chunk] if number < num_rows else total
                    place += next(gradients)
        return None, None, None, *sums


class _LinearOver(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Features,
        num_features: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *parameters)
        ctx.features, ctx.num_features, ctx.has_bias = features, num_features, bias is not None
        device = x.device.type
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        parts = [
            nn.functional.linear(features(x[rows]), weight, bias)
            for rows in _chunks(x, num_features, CPU_CHUNK)
        ]
        # Without rows the type is still the product's.
        return torch.cat(parts) if parts else nn.functional.linear(features(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        enabled, dtype = ctx.autocast
        to_x, to_weight = torch.empty_like(x), torch.zeros_like(weight)
        # Frozen parameters have no gradient to ask for.
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        to_trained = [torch.zeros_like(parameter) for parameter in trained]
        for rows in _chunks(x, ctx.num_features, CPU_CHUNK):
            with torch.enable_grad(), torch.autocast(x.device.type, dtype, enabled=enabled):
                part = x[rows].detach().requires_grad_()
                made = ctx.features(part)
                to_made = gradient[rows] @ weight
                to_weight += gradient[rows].T @ made.detach()
                to_part, *others = torch.autograd.grad(
                    made, (part, *trained), to_made.to(made.dtype)
                )
            to_x[rows] = to_part
            for total, other in zip(to_trained, others, strict=True):
                total += other
        to_bias = gradient.sum(0).to(weight.dtype) if ctx.has_bias else None
        sums = iter(to_trained)
        to_parameters = [next(sums) if p.requires_grad else None for p in parameters]
        return None, None, to_x, to_weight, to_bias, *to_parameters
