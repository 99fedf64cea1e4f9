"""Rows that lie together by group, each group times a matrix of its own."""

from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankloom.layers.precision import in_product_dtype


def grouped_product(
    x: Float[Tensor, "rows in_features"],
    matrices: Float[Tensor, "groups out_features in_features"],
    sizes: list[int],
) -> Float[Tensor, "rows out_features"]:
    """Every row times its group's matrix, transposed as a linear layer's is.

    Products write into their rows of one result, forward and backward: nothing is put together
    afterwards, and autograd sees one step in place of one for every group.

    Args:
        x: rows of the first group, of the second, ...
        matrices: one for every group.
        sizes: rows of every group; they add up to the rows.
    """
    product = _GroupedProduct.apply(in_product_dtype(x), in_product_dtype(matrices), sizes)  # type: ignore[no-untyped-call]
    return cast(Tensor, product)


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, matrices)
        ctx.bounds = list(pairwise(accumulate(sizes, initial=0)))
        out = x.new_empty(x.shape[0], matrices.shape[1])
        for matrix, (start, stop) in zip(matrices, ctx.bounds, strict=True):
            if stop > start:
                torch.mm(x[start:stop], matrix.T, out=out[start:stop])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, matrices = ctx.saved_tensors
        to_x, to_matrices = torch.empty_like(x), torch.empty_like(matrices)
        for group, (start, stop) in enumerate(ctx.bounds):
            own = gradient[start:stop]
            torch.mm(own, matrices[group], out=to_x[start:stop])
            torch.mm(own.T, x[start:stop], out=to_matrices[group])
        return to_x, to_matrices, None
