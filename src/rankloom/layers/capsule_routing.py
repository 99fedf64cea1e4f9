"""Capsules: votes of a vector, and routing by agreement among them.

Sources: Sabour, Frosst and Hinton, NeurIPS 2017, arXiv:1710.09829 (routing by agreement); the
    constant 0.5 and the use on item vectors are CapsID's, arXiv:2605.05096.
Equations, for a vector r and capsules k with matrix W_k and bias b_k:
    votes       u_k = W_k r + b_k
    squash(z) = ||z||^2 / (0.5 + ||z||^2) z / ||z||
    routing     a = 0; then several times: c = softmax(kappa a), o = squash(sum_k c_k u_k),
                a_k = a_k + u_k . o
    read-out    c = softmax(kappa a), o = squash(sum_k c_k u_k)
With W_k = w I, or w I and a product of low rank, the votes of all capsules are never held: routing
needs only sums over capsules and inner products with them.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

SQUASH_OFFSET = 0.5


def squash(z: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
    """The vector with its length n made n^2 / (0.5 + n^2), which is below 1; zero stays zero."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z * (length / (SQUASH_OFFSET + length.square()))


@runtime_checkable
class Votes(Protocol):
    """What capsules say of each row. A vote is u[row, capsule], of `dim` numbers."""

    def zeros(self) -> Float[Tensor, "batch codes"]:
        """A zero for each vote."""

    def mix(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Weighted sum of a row's votes."""

    def agreement(self, output: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its row."""

    def products(self, targets: Float[Tensor, "codes dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its capsule."""

    def squared_lengths(self) -> Float[Tensor, "batch codes"]:
        """Squared length of each vote, not below 0."""

    def capsule_sums(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "codes dim"]:
        """Weighted sum of a capsule's votes over the rows."""


@dataclass(frozen=True)
class SharedVotes:
    """u_k = h + b_k, never held."""

    shared: Float[Tensor, "batch dim"]
    """h, common to the capsules."""
    biases: Float[Tensor, "codes dim"]

    def zeros(self) -> Float[Tensor, "batch codes"]:
        """A zero for each vote."""
        return self.shared.new_zeros(len(self.shared), len(self.biases))

    def mix(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Weighted sum of a row's votes."""
        return weights.sum(1, keepdim=True) * self.shared + weights @ self.biases

    def agreement(self, output: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its row."""
        return (self.shared * output).sum(1, keepdim=True) + output @ self.biases.T

    def products(self, targets: Float[Tensor, "codes dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its capsule."""
        return self.shared @ targets.T + (self.biases * targets).sum(1)

    def squared_lengths(self) -> Float[Tensor, "batch codes"]:
        """Squared length of each vote, not below 0."""
        lengths = self.shared.square().sum(1, keepdim=True) + self.biases.square().sum(1)
        return (lengths + 2 * self.shared @ self.biases.T).clamp(min=0)

    def capsule_sums(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "codes dim"]:
        """Weighted sum of a capsule's votes over the rows."""
        return weights.T @ self.shared + weights.sum(0).unsqueeze(1) * self.biases


@dataclass(frozen=True)
class LowRankVotes:
    """u_k = h + b_k + z_k U_k with z_k of few numbers, never held."""

    plain: SharedVotes
    """h + b_k."""
    inner: Float[Tensor, "batch codes rank"]
    """z."""
    up: Float[Tensor, "codes rank dim"]
    """U."""

    def zeros(self) -> Float[Tensor, "batch codes"]:
        """A zero for each vote."""
        return self.plain.zeros()

    def mix(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Weighted sum of a row's votes."""
        weighted = (weights.unsqueeze(2) * self.inner).flatten(1)  # [batch, codes * rank]
        return self.plain.mix(weights) + weighted @ self.up.flatten(0, 1)

    def agreement(self, output: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its row."""
        return self.plain.agreement(output) + self._low_rank_agreement(output)

    def products(self, targets: Float[Tensor, "codes dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its capsule."""
        seen = (self.up * targets.unsqueeze(1)).sum(2)  # [codes, rank]
        return self.plain.products(targets) + (self.inner * seen).sum(2)

    def squared_lengths(self) -> Float[Tensor, "batch codes"]:
        """Squared length of each vote, not below 0."""
        crossed = self._low_rank_agreement(self.plain.shared)
        seen = (self.up * self.plain.biases.unsqueeze(1)).sum(2)  # [codes, rank]
        crossed = crossed + (self.inner * seen).sum(2)
        squares = self.up @ self.up.transpose(1, 2)  # [codes, rank, rank]
        own = (torch.einsum("bkr,krs->bks", self.inner, squares) * self.inner).sum(2)
        return (self.plain.squared_lengths() + 2 * crossed + own).clamp(min=0)

    def capsule_sums(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "codes dim"]:
        """Weighted sum of a capsule's votes over the rows."""
        inner = (weights.unsqueeze(2) * self.inner).sum(0)  # [codes, rank]
        return self.plain.capsule_sums(weights) + (inner.unsqueeze(1) @ self.up).squeeze(1)

    def _low_rank_agreement(self, output: Tensor) -> Tensor:
        seen = (output @ self.up.flatten(0, 1).T).view_as(self.inner)
        return (self.inner * seen).sum(2)  # [batch, codes]


@dataclass(frozen=True)
class HeldVotes:
    """Votes that are held: batch x codes x dim numbers."""

    votes: Float[Tensor, "batch codes dim"]

    def zeros(self) -> Float[Tensor, "batch codes"]:
        """A zero for each vote."""
        return self.votes.new_zeros(self.votes.shape[:2])

    def mix(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch dim"]:
        """Weighted sum of a row's votes."""
        return (weights.unsqueeze(1) @ self.votes).squeeze(1)

    def agreement(self, output: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its row."""
        return (self.votes @ output.unsqueeze(2)).squeeze(2)

    def products(self, targets: Float[Tensor, "codes dim"]) -> Float[Tensor, "batch codes"]:
        """Inner product of each vote with a vector of its capsule."""
        return (self.votes * targets).sum(2)

    def squared_lengths(self) -> Float[Tensor, "batch codes"]:
        """Squared length of each vote, not below 0."""
        return self.votes.square().sum(2)

    def capsule_sums(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "codes dim"]:
        """Weighted sum of a capsule's votes over the rows."""
        return (weights.unsqueeze(2) * self.votes).sum(0)


class ScaledIdentityPoses(nn.Module):
    """W_k = w I for all capsules; biases start at zero.

    Args:
        dim: width of a vector and of a vote.
        num_capsules: capsules.
        scale: w, above 0 and below 1.
        learned: whether w is learned; it stays between 0 and 1.
    """

    def __init__(self, dim: int, num_capsules: int, scale: float, *, learned: bool = False) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.zeros(num_capsules, dim))
        start = torch.logit(torch.tensor(scale))
        # A buffer where it is fixed, so that an optimiser's weight decay does not move it either.
        self.scale_logit: Tensor
        if learned:
            self.scale_logit = nn.Parameter(start)
        else:
            self.register_buffer("scale_logit", start)

    def forward(self, r: Float[Tensor, "batch dim"]) -> Votes:
        """The votes on some vectors."""
        return SharedVotes(torch.sigmoid(self.scale_logit) * r, self.biases)


class LowRankPoses(nn.Module):
    """W_k = w I + U_k D_k of low rank; starts at w I, biases at zero.

    Args:
        dim: width of a vector and of a vote.
        num_capsules: capsules.
        scale: w.
        rank: rank of the products.
    """

    def __init__(self, dim: int, num_capsules: int, scale: float, rank: int) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.zeros(num_capsules, dim))
        self.down = nn.Parameter(torch.empty(num_capsules, rank, dim).normal_(0, dim**-0.5))
        self.up = nn.Parameter(torch.zeros(num_capsules, rank, dim))
        self.scale = scale

    def forward(self, r: Float[Tensor, "batch dim"]) -> Votes:
        """The votes on some vectors."""
        inner = (r @ self.down.flatten(0, 1).T).view(len(r), *self.up.shape[:2])
        return LowRankVotes(SharedVotes(self.scale * r, self.biases), inner, self.up)


class FullPoses(nn.Module):
    """A matrix of its own for each capsule; starts at w I, biases at zero.

    Args:
        dim: width of a vector and of a vote.
        num_capsules: capsules.
        scale: w at the start.
    """

    def __init__(self, dim: int, num_capsules: int, scale: float) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.zeros(num_capsules, dim))
        self.matrices = nn.Parameter(scale * torch.eye(dim).repeat(num_capsules, 1, 1))

    def forward(self, r: Float[Tensor, "batch dim"]) -> Votes:
        """The votes on some vectors."""
        votes = r @ self.matrices.flatten(0, 1).T  # [batch, codes * dim]
        return HeldVotes(votes.view(len(r), *self.biases.shape) + self.biases)


def squash_factors(votes: Votes) -> Float[Tensor, "batch codes"]:
    """G with squash(u_k) = g_k u_k."""
    # A square root has no gradient at zero.
    squared = votes.squared_lengths().clamp(min=1e-12)
    return squared.sqrt() / (SQUASH_OFFSET + squared)


def route(
    votes: Votes, kappa: Float[Tensor, ""], num_updates: int
) -> tuple[Float[Tensor, "batch codes"], Float[Tensor, "batch dim"]]:
    """Routing by agreement, read after the last update of the agreements.

    Published routing of T rounds reads the weights before its last update: it is this one with
    T - 1 updates. With none of them the weights are equal whatever the votes are.

    Args:
        votes: the capsules' votes.
        kappa: factor of the agreements in the softmax.
        num_updates: updates of the agreements.

    Returns:
        The weights, which sum to one over a row's capsules, and the squashed mixture.
    """
    agreements = votes.zeros()
    for _ in range(num_updates):
        output = squash(votes.mix(torch.softmax(kappa * agreements, dim=1)))
        agreements = agreements + votes.agreement(output)
    weights = torch.softmax(kappa * agreements, dim=1)
    return weights, squash(votes.mix(weights))
