"""What every pair of fields i < j gives: products per dimension, inner products.

Pairs are in the order (0, 1), (0, 2), ..., (0, F-1), (1, 2), ...; F fields make F (F - 1) / 2 of
them, one field none.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rankloom.layers.precision import in_product_dtype


def num_pairs(num_fields: int) -> int:
    """Number of pairs i < j."""
    return num_fields * (num_fields - 1) // 2


def pair_indices(
    num_fields: int, device: torch.device | None = None
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """The fields i and j of every pair i < j, int64."""
    first, second = torch.triu_indices(num_fields, num_fields, offset=1, device=device)
    return first, second


def pair_products(
    vectors: Float[Tensor, "batch fields dim"],
    right: Float[Tensor, "batch _ dim"] | None = None,
) -> Float[Tensor, "batch pairs dim"]:
    """Element-wise products vectors[i] * right[j] of all pairs i < j.

    Args:
        vectors: left factors; the last field is never one, and may be missing where `right` is
            given.
        right: right factors, which count the fields; None: `vectors`.
    """
    vectors = in_product_dtype(vectors)
    right = vectors if right is None else in_product_dtype(right)
    if torch.compiler.is_compiling():  # a compiler fuses the plain form by itself
        first, second = pair_indices(right.shape[1], right.device)
        return vectors.index_select(1, first) * right.index_select(1, second)
    return cast(Tensor, _PairProducts.apply(vectors, right))  # type: ignore[no-untyped-call]


class _PairProducts(torch.autograd.Function):
    """Pair products that keep the vectors for backward, not their copies of every pair."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        first, second = pair_indices(right.shape[1], right.device)
        return left.index_select(1, first).mul_(right.index_select(1, second))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        first, second = pair_indices(right.shape[1], right.device)
        to_left = right.index_select(1, second).mul_(gradient)  # [batch, pairs, dim]
        left_gradient = torch.zeros_like(left).index_add_(1, first, to_left)
        del to_left
        to_right = left.index_select(1, first).mul_(gradient)  # [batch, pairs, dim]
        return left_gradient, torch.zeros_like(right).index_add_(1, second, to_right)


def pair_inner_products(
    vectors: Float[Tensor, "batch fields dim"],
) -> Float[Tensor, "batch pairs"]:
    """Inner products <v[i], v[j]> of all pairs i < j, read from one matrix product."""
    vectors = in_product_dtype(vectors)
    if torch.compiler.is_compiling():  # a compiler fuses the plain form by itself
        return _upper_triangle(vectors)
    return cast(Tensor, _PairInnerProducts.apply(vectors))  # type: ignore[no-untyped-call]


def _upper_triangle(vectors: Tensor) -> Tensor:
    first, second = pair_indices(vectors.shape[1], vectors.device)
    products = torch.bmm(vectors, vectors.mT)  # [batch, fields, fields]
    return products.flatten(1).index_select(1, first * vectors.shape[1] + second)


class _PairInnerProducts(torch.autograd.Function):
    """Inner products whose gradient is one matrix product: d/dv = S v.

    S [fields, fields] is symmetric, holds a pair's gradient at (i, j) and (j, i), and zeros on its
    diagonal. Autograd would take two products, of the upper triangle and of its transpose.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(vectors)
        return _upper_triangle(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        fields, pairs = vectors.shape[1], gradient.shape[1]
        first, second = pair_indices(fields, gradient.device)
        number = torch.arange(pairs, device=gradient.device)
        # Where S reads each of its elements from; the diagonal reads the zero behind the pairs.
        source = torch.full((fields, fields), pairs, device=gradient.device)
        source[first, second] = number
        source[second, first] = number
        padded = functional.pad(gradient, (0, 1))  # [batch, pairs + 1]
        symmetric = torch.unflatten(padded.index_select(1, source.flatten()), 1, (fields, fields))
        return torch.bmm(symmetric, vectors)
