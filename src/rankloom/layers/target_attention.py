"""DIN's activation unit: attention to past events by a network that reads target and event."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import ActivationName, Dice, activation_builder, linear


class TargetAttention(nn.Module):
    """How much every event matters to the target, and the sum of events weighed by it.

    Source: Zhou et al., KDD 2018, arXiv:1706.06978, section 4.3, as the field's benchmarks have it:
        a[j] = MLP([t; k[j]; t - k[j]; t * k[j]]),  v = sum_j a[j] x[j]
    The weights need not add up to one, so that much interest gives a long vector; with `softmax`
    they do. Padding has no weight, and enters no statistics of a `dice`.

    The first layer is computed in the pieces of its matrix: W_t t + W_k k + W_d (t - k) + W_p t * k
    = (W_t + W_d) t + (W_k - W_d) k + W_p (t * k), whose first term is one for all events of a row.

    Args:
        dim: width of the target, and of a key.
        hidden: widths of the hidden layers; empty: one linear layer.
        activation: activation of the hidden layers.
        dropout: share of hidden units dropped in training.
        softmax: whether the weights of a row add up to one.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64,),
        activation: ActivationName = "dice",
        dropout: float = 0.0,
        softmax: bool = False,
    ) -> None:
        super().__init__()
        build = activation_builder(activation)
        widths = [*hidden, 1]
        self.first = linear(4 * dim, widths[0])
        """Over [t; k; t - k; t * k]."""
        self.layers = nn.ModuleList()
        for width, next_width in itertools.pairwise(widths):
            self.layers.append(_Layer(build(width), dropout, linear(width, next_width)))
        self.normalise = masked_softmax if softmax else masked

    def forward(
        self,
        target: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch events dim"],
        values: Float[Tensor, "batch events value_dim"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch value_dim"]:
        """The weighed sum of the values; zeros without events.

        Args:
            target: what the events are compared with.
            keys: the events in the terms of the target.
            values: the events as they are summed.
            mask: True at real events.
        """
        weights = self.weights(target, keys, mask).to(values.dtype)
        return torch.bmm(weights.unsqueeze(1), values).squeeze(1)

    def weights(
        self,
        target: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch events dim"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch events"]:
        """The weight of every event, zero at padding; arguments as of `forward`."""
        w_target, w_key, w_difference, w_product = self.first.weight.chunk(4, dim=1)
        of_target = functional.linear(target, w_target + w_difference, self.first.bias)
        pairs = torch.cat([keys, target.unsqueeze(1) * keys], dim=2)  # [batch, events, 2 dim]
        w_pairs = torch.cat([w_key - w_difference, w_product], dim=1)
        x = functional.linear(pairs, w_pairs) + of_target.unsqueeze(1)  # [batch, events, hidden]
        x, real = x.flatten(0, 1), mask.flatten()  # [batch * events, hidden], [batch * events]
        for layer in self.layers:
            x = layer(x, real)
        scores = torch.unflatten(x.squeeze(1), 0, (-1, keys.shape[1]))  # [batch, events]
        return self.normalise(scores, mask)


class _Layer(nn.Module):
    """Activation and dropout of a hidden layer, and the linear layer after it."""

    def __init__(self, activation: nn.Module, dropout: float, after: nn.Linear) -> None:
        super().__init__()
        self.activation = activation if isinstance(activation, Dice) else _Unmasked(activation)
        self.dropout = Dropout(dropout)
        self.linear = after

    def forward(
        self, x: Float[Tensor, "rows width"], mask: Bool[Tensor, " rows"]
    ) -> Float[Tensor, "rows next_width"]:
        return self.linear(self.dropout(self.activation(x, mask)))


class _Unmasked(nn.Module):
    """An activation that looks at each row by itself."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self, x: Float[Tensor, "rows width"], mask: Bool[Tensor, " rows"]
    ) -> Float[Tensor, "rows width"]:
        return self.activation(x)


def masked_softmax(
    scores: Float[Tensor, "batch events"], mask: Bool[Tensor, "batch events"]
) -> Float[Tensor, "batch events"]:
    """Weights of a row that add up to one, zero at padding; zeros for a row without events."""
    # The least number instead of minus infinity: a row without events stays finite.
    return masked(scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1), mask)


def masked(
    scores: Float[Tensor, "batch events"], mask: Bool[Tensor, "batch events"]
) -> Float[Tensor, "batch events"]:
    """The scores, zero at padding."""
    return scores.masked_fill(~mask, 0)
