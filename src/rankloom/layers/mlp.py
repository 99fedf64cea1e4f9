"""Plain networks: linear layers as the field's benchmarks start them, and stacks of them."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout

ActivationName = Literal[
    "relu", "leaky_relu", "prelu", "dice", "gelu", "silu", "tanh", "sigmoid", "none"
]
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
        "dice": Dice,
        "gelu": lambda width: nn.GELU(),
        "silu": lambda width: nn.SiLU(),
        "tanh": lambda width: nn.Tanh(),
        "sigmoid": lambda width: nn.Sigmoid(),
        "none": lambda width: nn.Identity(),
    }
    return builders[name]


class Dice(nn.Module):
    """A PReLU whose bend lies at each unit's mean: p x + (1 - p) alpha x.

    Source: Zhou et al., KDD 2018, arXiv:1706.06978, section 5.2: p is the sigmoid of x, normalised
    by the mean and variance of the batch in training, by their moving averages at evaluation. As in
    the authors' code, each unit has an alpha, which starts at zero. The number added to the
    variance is the paper's.

    One row has no variance: in training it is normalised as at evaluation, and moves no average.
    """

    EPS = 1e-8
    """Added to the variance."""
    MOMENTUM = 0.1
    """Share of the batch in the moving averages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(
        self, x: Float[Tensor, "rows width"], mask: Bool[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows width"]:
        """The activated units.

        Args:
            x: the units.
            mask: False at rows that do not count in the statistics of a batch, as padding; None:
                all count.
        """
        if self.training and mask is not None:
            normal = self._masked_norm(x, mask)
        else:
            normal = functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                training=self.training and x.shape[0] > 1,
                momentum=self.MOMENTUM,
                eps=self.EPS,
            )
        return x * (self.alpha + (1 - self.alpha) * normal.sigmoid())

    def _masked_norm(self, x: Tensor, mask: Tensor) -> Tensor:
        """The rows, normalised by the statistics of those in the mask: [rows, width]."""
        x = x.to(self.alpha.dtype)  # half precision loses what a variance is made of
        share = mask.to(x.dtype).unsqueeze(1)  # [rows, 1]
        count = share.sum()
        known = count > 1
        mean = torch.where(known, (x * share).sum(0) / count.clamp(min=1), self.running_mean)
        centred = x - mean
        squares = (centred.square() * share).sum(0)
        var = torch.where(known, squares / count.clamp(min=1), self.running_var)
        rate = self.MOMENTUM * known.to(x.dtype)
        with torch.no_grad():
            self.running_mean.lerp_(mean, rate)
            # Unbiased, as torch's batch norm keeps it.
            self.running_var.lerp_(squares / (count - 1).clamp(min=1), rate)
        return centred * torch.rsqrt(var + self.EPS)


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
                layers.append(Dropout(dropout))
            width = next_width
        if out_features is not None:
            layers.append(linear(width, out_features))
            width = out_features
        self.layers = nn.Sequential(*layers)
        self.out_features = width

    @property
    def biases(self) -> Tensor:
        """Biases of the last linear layer."""
        return next(m.bias for m in reversed(self.layers) if isinstance(m, nn.Linear))

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """The network's output."""
        return self.layers(x)
