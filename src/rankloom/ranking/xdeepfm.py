"""xDeepFM: a compressed interaction network beside a plain one and a linear term.

Source: Lian et al., KDD 2018, arXiv:1803.05170, section 3.
Equations: X[k][h] = sum_{i,j} W[k][h,i,j] X[k-1][i] * X[0][j] + b[k][h],  X[0] = [e[1]; ...; e[F]]
    logits = c + sum_i w[i] x[i] + V [sum over dim of X[1]; ...; of X[K]] + MLP([e[1]; ...; e[F]])
Differs from the paper: the feature maps have biases b, as in its public code and in the field's
    benchmarks. That code's other extra, half of the maps to the next layer and half to the sum, is
    not taken: all maps go both ways, and none has an activation, as the paper has it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.layers.mlp import linear
from rankloom.layers.precision import in_product_dtype
from rankloom.ranking.network import Network
from rankloom.schema import Schema

CPU_CHUNK = 2**19
"""Products held at once on a CPU: they stay in its cache."""
DEVICE_CHUNK = 2**26
"""Products held at once elsewhere: enough to keep an accelerator busy."""


class XDeepFMConfig(Network):
    """Sizes of the compressed interaction network and of the plain one."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, which all parts but the linear term share."""
    feature_maps: tuple[int, ...] = Field((64, 64), min_length=1)
    """Feature maps of every layer of the compressed interaction network."""
    hidden: tuple[int, ...] = (400, 400, 400)
    """Widths of the plain network's hidden layers; empty: no plain network (the benchmarks' CIN)
    and no effect of its other settings."""


class CIN(nn.Module):
    """Compressed interaction network: layer k holds interactions of order k + 1, per dimension.

    Every dimension of a row is treated alike, so a layer is a linear map of all products of its two
    inputs, H maps and F fields: rows of H F values times the weights. The weights times one input
    first would cost as many operations and make rows of O F or O H values for O maps: fewer only
    where layers narrow. As only a chunk of rows is there at once, it is not the size that counts
    but the shape of the product, and a long inner axis suits it.

    Args:
        num_fields: vectors of the input.
        feature_maps: feature maps of every layer.
    """

    out_features: int
    """Feature maps of all layers together."""

    def __init__(self, num_fields: int, feature_maps: Sequence[int]) -> None:
        super().__init__()
        inputs = (num_fields, *feature_maps[:-1])
        self.layers = nn.ModuleList(
            [_CINLayer(h, num_fields, o) for h, o in zip(inputs, feature_maps, strict=True)]
        )
        self.out_features = sum(feature_maps)

    def forward(
        self, vectors: Float[Tensor, "batch fields dim"]
    ) -> Float[Tensor, "batch out_features"]:
        """All feature maps, summed over `dim`."""
        dim = vectors.shape[2]
        x0 = in_product_dtype(vectors).mT.flatten(0, 1)  # [batch * dim, fields]
        x, sums = x0, []
        for layer in self.layers:
            x = layer(x, x0)  # [batch * dim, maps]
            sums.append(torch.unflatten(x, 0, (-1, dim)).sum(1))  # [batch, maps]
        return torch.cat(sums, dim=1)


class _CINLayer(nn.Module):
    def __init__(self, in_maps: int, num_fields: int, out_maps: int) -> None:
        super().__init__()
        self.compress = linear(in_maps * num_fields, out_maps)  # DIFF: with a bias

    def forward(
        self, x: Float[Tensor, "rows maps"], x0: Float[Tensor, "rows fields"]
    ) -> Float[Tensor, "rows out"]:
        return products_linear(x, x0, self.compress.weight, self.compress.bias)


def products_linear(
    x: Float[Tensor, "rows maps"],
    x0: Float[Tensor, "rows fields"],
    weight: Float[Tensor, "out products"],
    bias: Float[Tensor, " out"],
) -> Float[Tensor, "rows out"]:
    """A linear map of all products x[i] x0[j] of a row, which lie in the order i * fields + j.

    Neither pass holds more products than a chunk of rows has; backward makes them again.
    """
    if torch.compiler.is_compiling():  # custom gradients cannot be exported
        return functional.linear(_products(x, x0), weight, bias)
    return cast(Tensor, _ProductsLinear.apply(x, x0, weight, bias))  # type: ignore[no-untyped-call]


def _products(x: Tensor, x0: Tensor) -> Tensor:
    return (x.unsqueeze(2) * x0.unsqueeze(1)).flatten(1)  # [rows, maps * fields]


def _chunks(x: Tensor, num_products: int) -> list[slice]:
    limit = CPU_CHUNK if x.device.type == "cpu" else DEVICE_CHUNK
    step = max(1, limit // num_products)
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


class _ProductsLinear(torch.autograd.Function):
    """`products_linear`, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, x0, weight)
        matrix, shift = weight.T.to(x.dtype), bias.to(x.dtype)
        out = x.new_empty(x.shape[0], weight.shape[0])
        for rows in _chunks(x, weight.shape[1]):
            torch.addmm(shift, _products(x[rows], x0[rows]), matrix, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, x0, weight = ctx.saved_tensors
        matrix = weight.to(x.dtype)
        to_x, to_x0, to_weight = torch.empty_like(x), torch.empty_like(x0), torch.zeros_like(weight)
        for rows in _chunks(x, weight.shape[1]):
            part, left, right = gradient[rows], x[rows], x0[rows]
            to_weight += part.T @ _products(left, right)
            to_products = torch.unflatten(part @ matrix, 1, (x.shape[1], x0.shape[1]))
            to_x[rows] = (to_products * right.unsqueeze(1)).sum(2)
            to_x0[rows] = to_products.mul_(left.unsqueeze(2)).sum(1)
        return to_x, to_x0, to_weight, gradient.sum(0).to(weight.dtype)


class XDeepFM(nn.Module):
    """Linear term, compressed interactions, and a plain network where it has hidden layers."""

    def __init__(self, config: XDeepFMConfig, schema: Schema) -> None:
        super().__init__()
        self.linear = FirstOrder(schema)
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.cin = CIN(self.embedding.num_fields, config.feature_maps)
        # The linear term's bias serves all parts.
        self.output = linear(self.cin.out_features, schema.num_tasks, bias=False)
        width, tasks = self.embedding.width, schema.num_tasks
        self.deep = config.build_network(width, out_features=tasks) if config.hidden else None

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        vectors = self.embedding(batch)  # [batch, fields, dim]
        logits = self.linear(batch) + self.output(self.cin(vectors))
        return logits if self.deep is None else logits + self.deep(vectors.flatten(1))
