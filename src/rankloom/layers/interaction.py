"""Feature interactions: pair sums of factorization machines, cross layers of DCN and DCN V2."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankloom.layers.mlp import linear
from rankloom.layers.precision import in_product_dtype


def pair_sum(vectors: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch dim"]:
    """Sum over all field pairs i < j of v[i] * v[j], per dimension.

    Computed as 0.5 ((sum of vectors)^2 - sum of squares): linear in the number of fields. Summing
    the result over `dim` gives the pair term of a factorization machine.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the plain form by itself
        return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1))
    return cast(Tensor, _PairSum.apply(vectors))  # type: ignore[no-untyped-call]


class _PairSum(torch.autograd.Function):
    """The pair sum with its short gradient: d/dv[i] = g * (sum of vectors - v[i])."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        total = vectors.sum(1)  # [batch, dim]
        ctx.save_for_backward(vectors, total)
        return 0.5 * (total.square() - vectors.square().sum(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        vectors, total = ctx.saved_tensors
        # One pass to subtract and one in place, where autograd goes over the fields several times.
        return (total.unsqueeze(1) - vectors).mul_(gradient.unsqueeze(1))


class TaskSum(nn.Module):
    """Sum over `dim` as a logit; with several tasks, each weighs the dimensions on its own.

    One task: the plain sum, no parameters. Several: weights [dim, tasks] that start at one, so that
    every task starts from the plain sum.
    """

    def __init__(self, dim: int, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, num_tasks)) if num_tasks > 1 else None

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch tasks"]:
        """The logits."""
        if self.weight is None:
            return x.sum(1, keepdim=True)
        return x @ self.weight


class RankOneCross(nn.Module):
    """One cross layer of rank one, without its residual: x0 (w^T x) + b.

    Source: Wang et al., ADKDD 2017, arXiv:1708.05123, equation 3, which adds x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.product = linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self, x0: Float[Tensor, "batch width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        """The crossing of the first layer's input with this layer's."""
        return torch.addcmul(self.bias, x0, self.product(x))


class RankOneCrossNetwork(nn.Module):
    """Cross layers of rank one: x[l+1] = x[0] (w[l]^T x[l]) + b[l] + x[l].

    Source: Wang et al., ADKDD 2017, arXiv:1708.05123, equation 3.

    Every x[l] is a number a[l] per row times x[0], plus the vector b[0] + ... + b[l-1] that all
    rows share. So all layers cost one narrow matrix product and a recurrence of those numbers:

        a[l+1] = a[l] (1 + w[l]^T x[0]) + w[l]^T (b[0] + ... + b[l-1]),   a[0] = 1
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([RankOneCross(width) for _ in range(num_layers)])

    def forward(self, x0: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The last layer's output."""
        layers = [cast(RankOneCross, layer) for layer in self.layers]
        weight = torch.cat([layer.product.weight for layer in layers])  # [layers, width]
        bias = torch.stack([layer.bias for layer in layers])  # [layers, width]
        # The recurrence keeps the precision of x0 where autocast rounds the products.
        products = (weight @ x0.T).to(x0.dtype)  # [layers, batch]
        shared = (weight @ bias.T).tril(-1).sum(1)  # [layers]
        scale = x0.new_ones(x0.shape[0])
        for product, constant in zip(products.unbind(0), shared.unbind(0), strict=True):
            scale = torch.addcmul(scale, scale, product) + constant
        return torch.addcmul(bias.sum(0), x0, scale.unsqueeze(1))


class CrossNetwork(nn.Module):
    """Cross layers with full matrices: x[l+1] = x[0] * (W[l] x[l] + b[l]) + x[l].

    Source: Wang et al., WWW 2021, arXiv:2008.13535, equation 1.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([linear(width, width) for _ in range(num_layers)])

    def forward(self, x0: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The last layer's output."""
        x = x0 = in_product_dtype(x0)
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x


class LowRankCross(nn.Module):
    """One cross layer as a gated mixture of low-rank experts.

    Source: Wang et al., WWW 2021, arXiv:2008.13535, equations 3 to 5:
        expert[i](x) = x0 * (U[i] tanh(C[i] tanh(V[i]^T x)) + b)
        x' = sum_i softmax(G x)[i] expert[i](x) + x

    All experts are computed together. As the gates sum to one, their weights may be applied to the
    experts' inner outputs, and x0, b and the residual enter once.
    """

    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.down = nn.Parameter(_stack(num_experts, rank, width))
        """V^T: [experts, rank, width]."""
        self.inner = nn.Parameter(_stack(num_experts, rank, rank))
        """C: [experts, rank, rank]."""
        self.up = nn.Parameter(_stack(num_experts, rank, width))
        """U^T: [experts, rank, width]."""
        self.bias = nn.Parameter(torch.zeros(width))
        # One expert has nothing to choose: its softmax is one whatever the gate says.
        self.gate = linear(width, num_experts, bias=False) if num_experts > 1 else None

    def forward(
        self, x0: Float[Tensor, "batch width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        """The next layer's input, from the first and this layer's."""
        experts, rank, _ = self.down.shape
        low = torch.tanh(x @ self.down.flatten(0, 1).T)  # [batch, experts * rank]
        low = torch.unflatten(low, 1, (experts, rank)).transpose(0, 1)  # [experts, batch, rank]
        low = torch.tanh(torch.bmm(low, self.inner.mT))  # [experts, batch, rank]
        if self.gate is not None:
            low = low * self.gate(x).softmax(1).T.unsqueeze(-1)
        joined = torch.cat(low.unbind(0), dim=1)  # [batch, experts * rank]
        mixed = joined @ self.up.flatten(0, 1) + self.bias  # [batch, width]
        return torch.addcmul(x, x0, mixed)


class LowRankCrossNetwork(nn.Module):
    """Cross layers that are mixtures of low-rank experts, each layer with its own gate."""

    def __init__(self, width: int, num_layers: int, rank: int, num_experts: int) -> None:
        super().__init__()
        layers = [LowRankCross(width, rank, num_experts) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x0: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The last layer's output."""
        x = x0
        for layer in self.layers:
            x = layer(x0, x)
        return x


def _stack(num_experts: int, rows: int, columns: int) -> Tensor:
    """Xavier-normal matrices, one per expert: [experts, rows, columns]."""
    weights = torch.empty(num_experts, rows, columns)
    for matrix in weights:
        nn.init.xavier_normal_(matrix)
    return weights
