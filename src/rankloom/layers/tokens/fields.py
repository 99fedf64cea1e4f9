"""Fields to tokens: one per field, one per group of fields, or cut from all of them at once."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.mlp import MLP, activation_builder
from rankloom.layers.token_mlp import PerTokenLinear

TokenActivation = Literal["relu", "gelu", "silu", "tanh"]
"""Activations of networks that make tokens."""


class PerFieldTokens(nn.Module):
    """A linear layer of its own for every field; its bias is the field's own token.

    Args:
        num_fields: fields.
        in_dim: width of a field's vector.
        dim: width of a token.
    """

    num_tokens: int
    """Tokens."""

    def __init__(self, num_fields: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.num_tokens = num_fields
        self.project = PerTokenLinear(num_fields, in_dim, dim)

    @property
    def biases(self) -> Tensor:
        """What is added to all that a token reads: its own vector."""
        return cast(Tensor, self.project.bias)

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        """The tokens."""
        return self.project(vectors)


class GroupTokens(nn.Module):
    """A network of its own for every group of fields: W2 act(W1 [fields side by side] + b1) + b2.

    W1 times fields side by side is the sum of each field's own product, so that groups of any sizes
    are two batched products and no weight is padding.

    Source: group-wise tokens of Zhang et al., 2025, arXiv:2510.26104 (OneTrans), section 3.

    Args:
        groups: positions of each group's fields along the fields axis; together every field once.
        in_dim: width of a field's vector.
        dim: width of a token.
        hidden_dim: width of a group's hidden layer.
        activation: its activation.

    Raises:
        ValueError: a field stands in no group or in several, or a group is empty.
    """

    num_tokens: int
    """Tokens."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        in_dim: int,
        dim: int,
        hidden_dim: int,
        *,
        activation: TokenActivation = "gelu",
    ) -> None:
        super().__init__()
        places = sorted(place for group in groups for place in group)
        if places != list(range(len(places))) or not all(groups):
            raise ValueError(
                f"every field belongs to one group, and no group is empty; got {groups}"
            )
        self.num_tokens = len(groups)
        self.expand = PerTokenLinear(len(places), in_dim, hidden_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(len(groups), 1, hidden_dim))
        """[groups, 1, hidden_dim]."""
        self.activation = activation_builder(activation)(hidden_dim)
        self.reduce = PerTokenLinear(len(groups), hidden_dim, dim)
        membership = torch.zeros(len(groups), len(places))
        for number, group in enumerate(groups):
            membership[number, list(group)] = 1.0
            # xavier-normal of the group's whole matrix, which its fields' matrices are rows of.
            std = (2.0 / (len(group) * in_dim + hidden_dim)) ** 0.5
            with torch.no_grad():
                self.expand.weight[list(group)] = torch.randn(len(group), in_dim, hidden_dim) * std
        self.register_buffer("_membership", membership, persistent=False)
        self._membership: Tensor

    @property
    def biases(self) -> Tensor:
        """What is added to all that a token reads: its own vector."""
        return cast(Tensor, self.reduce.bias)

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch groups dim"]:
        """The tokens."""
        by_field = self.expand(vectors).transpose(0, 1)  # [fields, batch, hidden_dim]
        summed = torch.mm(self._membership, by_field.flatten(1))  # [groups, batch * hidden_dim]
        hidden = self.activation(summed.view(self.num_tokens, -1, by_field.shape[2]) + self.bias)
        return self.reduce(hidden.transpose(0, 1))


class AutoSplitTokens(nn.Module):
    """One network over all fields, its output cut into tokens.

    Source: Zhang et al., 2025, arXiv:2510.26104 (OneTrans), section 3.

    Args:
        network: from the fields side by side to `num_tokens * dim` units.
        num_tokens: tokens.
    """

    num_tokens: int
    """Tokens."""

    def __init__(self, network: MLP, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.network = network

    @property
    def biases(self) -> Tensor:
        """What is added to all that a token reads: its own vector."""
        return self.network.biases

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens."""
        return torch.unflatten(self.network(vectors.flatten(1)), 1, (self.num_tokens, -1))


class SliceTokens(nn.Module):
    """All fields side by side, cut into equal pieces, each with a linear layer of its own.

    Source: Zhu et al., 2025, arXiv:2507.15551 (RankMixer). A last piece that is too short is filled
    up with zeros.

    Args:
        num_fields: fields.
        in_dim: width of a field's vector.
        num_tokens: tokens.
        dim: width of a token.

    Raises:
        ValueError: a token would read nothing.
    """

    num_tokens: int
    """Tokens."""

    def __init__(self, num_fields: int, in_dim: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        width = num_fields * in_dim
        piece = slice_width(width, num_tokens)
        self.num_tokens = num_tokens
        self.missing = num_tokens * piece - width
        """Zeros after the last field."""
        self.project = PerTokenLinear(num_tokens, piece, dim)

    @property
    def biases(self) -> Tensor:
        """What is added to all that a token reads: its own vector."""
        return cast(Tensor, self.project.bias)

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens."""
        joined = functional.pad(vectors.flatten(1), (0, self.missing))
        return self.project(torch.unflatten(joined, 1, (self.num_tokens, -1)))


def slice_width(width: int, num_tokens: int) -> int:
    """Width of each of `num_tokens` equal pieces that hold `width` units.

    Raises:
        ValueError: a piece would hold nothing.
    """
    piece = -(-width // num_tokens)
    used = -(-width // piece)
    if used < num_tokens:
        raise ValueError(
            f"{width} units of all fields, cut into num_tokens={num_tokens} pieces of {piece}, "
            f"leave {num_tokens - used} of them empty; choose num_tokens={used}"
        )
    return piece


class WithGlobalToken(nn.Module):
    """A token that a network makes of all fields, before the others.

    Source: TokenMixer-Large, 2026, arXiv:2602.06563.

    Args:
        tokens: what makes the others; has `num_tokens`.
        network: from the fields side by side to one token.
    """

    num_tokens: int
    """Tokens, the global one included."""

    def __init__(self, tokens: nn.Module, num_tokens: int, network: MLP) -> None:
        super().__init__()
        self.tokens = tokens
        self.num_tokens = num_tokens + 1
        self.network = network

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens; the first is the global one."""
        whole = self.network(vectors.flatten(1)).unsqueeze(1)  # [batch, 1, dim]
        return torch.cat([whole, self.tokens(vectors)], dim=1)
