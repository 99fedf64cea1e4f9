"""Plain networks: linear layers as the field's benchmarks start them, and stacks of them."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

ActivationName = Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh", "sigmoid", "none"]
"""Activations that a config may name."""

ActivationBuilder = Callable[[int], nn.Module]
"""Makes the activation of a layer of the given width."""


def activation_builder(name: ActivationName) -> ActivationBuilder:
    """The builder behind an activation's name in a config."""
    builders: dict[ActivationName, ActivationBuilder] = {
        # In place: neither a linear layer nor a norm reads its own output in backward.
        "relu": lambda width: nn.ReLU(inplace=True),
        "leaky_relu": lambda width: nn.LeakyReLU(inplace=True),
        "prelu": lambda width: nn.PReLU(width),
        "gelu": lambda width: nn.GELU(),
        "silu": lambda width: nn.SiLU(),
        "tanh": lambda width: nn.Tanh(),
        "sigmoid": lambda width: nn.Sigmoid(),
        "none": lambda width: nn.Identity(),
    }
    return builders[name]


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with xavier-normal weights and zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class JointLinear(nn.Module):
    """One linear layer over several inputs, without laying them side by side first.

    Weights and starting values are those of a linear layer over the joined inputs.
    """

    def __init__(self, widths: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.joint = linear(sum(widths), out_features)

    def forward(
        self, first: Float[Tensor, "batch first"], *others: Float[Tensor, "batch _"]
    ) -> Float[Tensor, "batch out_features"]:
        """The outputs."""
        pieces = torch.split(self.joint.weight, self.widths, dim=1)
        out = functional.linear(first, pieces[0], self.joint.bias)
        for x, piece in zip(others, pieces[1:], strict=True):
            out = out + functional.linear(x, piece)
        return out


class MLP(nn.Module):
    """Linear, batch norm, activation, dropout per hidden layer; then a linear layer if asked.

    Args:
        in_features: width of the input.
        hidden: widths of the hidden layers; empty for none.
        out_features: width of the final linear layer; None: the last hidden layer is the output.
        activation: an activation's name, or a builder that is given the layer's width.
        dropout: share of hidden units dropped in training.
        batch_norm: whether hidden layers are batch-normalised before their activation.
    """

    out_features: int
    """Width of the output."""

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        out_features: int | None = None,
        activation: ActivationName | ActivationBuilder = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        build = activation_builder(activation) if isinstance(activation, str) else activation
        layers: list[nn.Module] = []
        width = in_features
        for next_width in hidden:
            layers.append(linear(width, next_width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(next_width))
            layers.append(build(next_width))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = next_width
        if out_features is not None:
            layers.append(linear(width, out_features))
            width = out_features
        self.layers = nn.Sequential(*layers)
        self.out_features = width

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """The network's output."""
        return self.layers(x)
