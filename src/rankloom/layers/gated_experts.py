"""Experts of one shape as a few wide products, and the softmax gates that weigh them.

Sources: Jacobs et al., Neural Computation 3, 1991 (softmax gates over experts); Ma et al., KDD
    2018, doi:10.1145/3219819.3220007 (a gate for every task).
Equation, for one row x and its experts f_1 ... f_n: y = sum_i g_i f_i(x), g = softmax(W x)
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout

ExpertActivation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh"]
"""Activations that experts share: those without parameters."""

# Not in place: what they read is a view of one wide layer's outputs.
_ACTIVATIONS: dict[ExpertActivation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class StackedLinear(nn.Module):
    """Linear layers of one shape, computed together; each starts as `mlp.linear` does.

    Args:
        num_layers: how many there are.
        in_features: width of their inputs.
        out_features: width of their outputs.
        bias: whether they have biases.
    """

    def __init__(
        self, num_layers: int, in_features: int, out_features: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, out_features, in_features))
        for matrix in self.weight.detach():
            nn.init.xavier_normal_(matrix)
        self.bias = nn.Parameter(torch.zeros(num_layers, out_features)) if bias else None
        """[layers, out_features], or None."""

    def forward(
        self, x: Float[Tensor, "inputs batch in_features"]
    ) -> Float[Tensor, "layers batch out_features"]:
        """The outputs.

        Args:
            x: what the layers read. One input serves all layers; of several, the first serves the
                first layers, as many for every input.
        """
        num_inputs, num_layers = x.shape[0], self.weight.shape[0]
        if num_inputs == 1:  # all of them are one wide layer
            bias = None if self.bias is None else self.bias.flatten()
            wide = functional.linear(x[0], self.weight.flatten(0, 1), bias)
            # [batch, layers * out_features] -> [layers, batch, out_features]
            return torch.unflatten(wide, 1, self.weight.shape[:2]).transpose(0, 1)
        if num_inputs != num_layers:
            x = x.repeat_interleave(num_layers // num_inputs, 0)  # [layers, batch, in_features]
        if self.bias is None:
            return torch.bmm(x, self.weight.mT)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class ExpertNetworks(nn.Module):
    """Networks of hidden layers, all of the same widths, computed together.

    Each is what an `MLP` without a final linear layer is. All layers have the activation.

    Args:
        num_experts: networks.
        in_features: width of their inputs.
        hidden: widths of their layers.
        activation: activation of every layer.
        dropout: share of units dropped after every layer in training.

    Raises:
        ValueError: there are no layers.
    """

    out_features: int
    """Width of an expert's output."""

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        hidden: Sequence[int],
        *,
        activation: ExpertActivation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden must name the width of one layer or more; got none")
        layers: list[nn.Module] = []
        for width, next_width in pairwise([in_features, *hidden]):
            layers.append(StackedLinear(num_experts, width, next_width))
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.out_features = hidden[-1]

    def forward(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch experts out_features"]:
        """Outputs of all experts on one input."""
        return by_rows(self.stacked(x.unsqueeze(0)))

    def stacked(
        self, x: Float[Tensor, "inputs batch in_features"]
    ) -> Float[Tensor, "experts batch out_features"]:
        """Outputs of all experts on several inputs, shared out as `StackedLinear` says."""
        return self.layers(x)


class SoftmaxGates(nn.Module):
    """Gates over as many experts each, computed together: softmax(W[g] x), without biases.

    Args:
        num_gates: gates.
        in_features: width of what they read.
        num_experts: experts that each of them weighs.
    """

    def __init__(self, num_gates: int, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.project = StackedLinear(num_gates, in_features, num_experts, bias=False)

    def forward(
        self, x: Float[Tensor, "inputs batch in_features"]
    ) -> Float[Tensor, "gates batch experts"]:
        """The weights, which sum to one over the experts; inputs as `StackedLinear` says."""
        return torch.softmax(self.project(x), dim=-1)


def by_rows(
    outputs: Float[Tensor, "experts batch width"],
) -> Float[Tensor, "batch experts width"]:
    """Stacked outputs, laid out anew so that rows are quick to gather."""
    # Not `contiguous`, which looks at the number of rows: an exported program knows none.
    return outputs.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def weighted_sum(
    weights: Float[Tensor, "*shape experts batch"],
    experts: Float[Tensor, "*shape experts batch width"],
) -> Float[Tensor, "*shape batch width"]:
    """Sum of stacked experts' outputs, weighed row by row."""
    return (weights.unsqueeze(-1) * experts).sum(-3)
