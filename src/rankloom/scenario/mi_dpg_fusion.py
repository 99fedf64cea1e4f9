"""MI-DPG's exchangeable fusions: how a layer's weight meets what is generated for a scenario.

The equations stand in `rankloom.scenario.mi_dpg`. With W of shape in x out, M is a matrix of the
same shape and low rank, one for every condition: a scenario, or a row where rows have conditions of
their own. Which of them needs M as a matrix:

    fusion               conditions of scenarios     conditions of rows
    hadamard, sigmoid    one matrix a scenario       one a row, a few rows at a time
    hadamard, linear     one matrix a scenario       none: rank times the layer's own product
    left_right           one matrix a scenario       one a row, a few rows at a time
    additive             none                        none
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.chunked import in_chunks
from rankloom.layers.row_conditions import RowConditions, Rows

Weigh = Callable[[Tensor, Tensor], Tensor]
"""The weights [conditions, out, in] of a weight [out, in] and matrices [conditions, out, in]."""


class Hadamard(Config):
    """W * g(U S V), element by element."""

    kind: Literal["hadamard"] = "hadamard"
    weighing: Literal["sigmoid", "linear"] = "sigmoid"
    """g: sigmoid is 2 sigmoid(M), between 0 and 2; linear is 1 + M, without bounds."""

    def build(self, in_features: int, out_features: int, rank: int, *, by_row: bool) -> "Weighed":
        """The fusion of one layer; `by_row`: rows have conditions of their own."""
        core = SharedFactors(in_features, out_features, rank)
        if self.weighing == "sigmoid":
            return Weighed(core, doubled_sigmoid)
        return WeighedInputs(core, one_plus) if by_row else Weighed(core, one_plus)


class LeftRight(Config):
    """W * 2 sigmoid(A V): the whole left factor is generated, the right one is shared."""

    kind: Literal["left_right"] = "left_right"

    def build(self, in_features: int, out_features: int, rank: int, *, by_row: bool) -> "Weighed":
        """The fusion of one layer."""
        return Weighed(GeneratedLeft(in_features, out_features, rank), doubled_sigmoid)


class Additive(Config):
    """W + U S V, computed as h W + ((h U) S) V."""

    kind: Literal["additive"] = "additive"

    def build(self, in_features: int, out_features: int, rank: int, *, by_row: bool) -> "Added":
        """The fusion of one layer."""
        return Added(in_features, out_features, rank)


FusionConfig = Annotated[Hadamard | LeftRight | Additive, Field(discriminator="kind")]


def doubled_sigmoid(weight: Tensor, matrices: Tensor) -> Tensor:
    """W * 2 sigmoid(M)."""
    return (2 * weight) * torch.sigmoid(matrices)


def one_plus(weight: Tensor, matrices: Tensor) -> Tensor:
    """W * (1 + M)."""
    return weight + weight * matrices


class SharedFactors(nn.Module):
    """M = U S V, of which S [rank, rank] is generated.

    Where S has numbers of size one, so has M.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(in_features, rank))
        """U, [in_features, rank]."""
        self.right = nn.Parameter(torch.empty(rank, out_features))
        """V, [rank, out_features]."""
        self.rank = rank
        self.num_generated = rank * rank
        for factor in (self.left, self.right):
            nn.init.normal_(factor, std=rank**-0.5)

    def cores(self, generated: Tensor) -> Float[Tensor, "conditions rank rank"]:
        """S."""
        return torch.unflatten(generated, 1, (self.rank, self.rank))

    def right_of(self, generated: Tensor) -> Float[Tensor, "conditions rank out_features"]:
        """S V."""
        cores = self.cores(generated)
        return torch.bmm(cores, self.right.expand(cores.shape[0], -1, -1))

    def forward(self, generated: Tensor) -> Float[Tensor, "conditions out_features in_features"]:
        """M, transposed."""
        right = self.right_of(generated).mT  # [conditions, out_features, rank]
        flat = right.flatten(0, 1) @ self.left.T  # one product for all conditions
        return torch.unflatten(flat, 0, (-1, self.right.shape[1]))


class GeneratedLeft(nn.Module):
    """M = A V, of which A [in_features, rank] is generated."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.empty(rank, out_features))
        """V, [rank, out_features]."""
        self.rank = rank
        self.num_generated = in_features * rank
        nn.init.normal_(self.right, std=rank**-0.5)

    def forward(self, generated: Tensor) -> Float[Tensor, "conditions out_features in_features"]:
        """M, transposed."""
        left = torch.unflatten(
            generated, 1, (self.rank, -1)
        )  # [conditions, rank, in_features]: A^T
        return self.right.T @ left


class Weighed(nn.Module):
    """A weight times a function of M, element by element."""

    def __init__(self, factors: SharedFactors | GeneratedLeft, weigh: Weigh) -> None:
        super().__init__()
        self.factors = factors
        self.weigh = weigh
        self.num_generated = factors.num_generated

    def forward(
        self, x: Rows, weight: Tensor, bias: Tensor | None, generated: Tensor, rows: RowConditions
    ) -> Tensor:
        """The layer's output."""
        parameters = [weight, *self.factors.parameters()]
        out = rows.product(x, generated, lambda part: self.weights(weight, part), parameters)
        return out if bias is None else out + bias

    def generated_matrices(self, generated: Tensor) -> Tensor:
        """M, transposed: [conditions, out_features, in_features]."""
        return self.factors(generated)

    def weights(self, weight: Tensor, generated: Tensor) -> Tensor:
        """The weights in full, [conditions, out_features, in_features]."""
        return self.weigh(weight, self.factors(generated))


class WeighedInputs(Weighed):
    """W * (1 + U S V) for rows of different S, by weighing what goes in and what comes out.

    With u[i] a column of U and r[i] a row of S V:

        h (W * (1 + U S V)) = h W + sum_i ((h * u[i]) W) * r[i]
    """

    def forward(
        self, x: Rows, weight: Tensor, bias: Tensor | None, generated: Tensor, rows: RowConditions
    ) -> Tensor:
        """The layer's output; `generated` has a row for every row of `x`."""
        factors = self.factors
        assert isinstance(factors, SharedFactors)

        def weighed_product(part: Tensor, numbers: Tensor) -> Tensor:
            scale = factors.right_of(numbers)  # [rows, rank, out_features]
            for _ in range(part.ndim - 2):
                scale = scale.unsqueeze(1)  # all tokens of a row alike
            inner = part.unsqueeze(-2) * factors.left.T  # [rows, (tokens,) rank, in_features]
            # Rows of a matrix: a linear layer over more axes could not be exported.
            flat = functional.linear(inner.flatten(0, -2), weight)
            return (torch.unflatten(flat, 0, inner.shape[:-1]) * scale).sum(-2)

        numbers = factors.rank * (x[:1].numel() + weight.shape[0])
        parameters = [weight, factors.left, factors.right]
        out = in_chunks(weighed_product, parameters, numbers, x, generated)
        return functional.linear(x, weight, bias) + out


class Added(nn.Module):
    """A weight plus U S V, which is never built."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.factors = SharedFactors(in_features, out_features, rank)
        self.num_generated = self.factors.num_generated
        for factor in (self.factors.left, self.factors.right):
            nn.init.xavier_normal_(factor)  # of the size of a layer's own weights

    def forward(
        self, x: Rows, weight: Tensor, bias: Tensor | None, generated: Tensor, rows: RowConditions
    ) -> Tensor:
        """The layer's output."""
        inner = x @ self.factors.left  # [batch, (tokens,) rank]
        inner = rows.product(inner, generated, lambda part: self.factors.cores(part).mT, ())
        return functional.linear(x, weight, bias) + inner @ self.factors.right

    def generated_matrices(self, generated: Tensor) -> Tensor:
        """M, transposed: [conditions, out_features, in_features]."""
        return self.factors(generated)

    def weights(self, weight: Tensor, generated: Tensor) -> Tensor:
        """The weights in full, [conditions, out_features, in_features]."""
        return weight + self.factors(generated)
