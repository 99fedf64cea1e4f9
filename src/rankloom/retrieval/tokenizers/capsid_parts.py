"""Exchangeable parts of CapsID: projection, poses, scaling, reconstruction, centres, residuals."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.capsule_routing import (
    FullPoses,
    LowRankPoses,
    ScaledIdentityPoses,
    Votes,
    squash_factors,
)


class PrincipalProjection(Config):
    """Centre the vectors and turn them to their first principal axes; fixed once fitted."""

    kind: Literal["principal"] = "principal"
    whiten: bool = False
    """Whether each axis is scaled to variance one, so that weak axes count as much as strong."""

    def build(self, width: int, dim: int) -> "Projection":
        """The projection from `width` to `dim` numbers."""
        return Projection(width, dim, whiten=self.whiten, learned=False)


class LearnedProjection(Config):
    """A linear layer that is learned with the capsules; it starts at the principal axes."""

    kind: Literal["learned"] = "learned"

    def build(self, width: int, dim: int) -> "Projection":
        """The projection from `width` to `dim` numbers."""
        return Projection(width, dim, whiten=False, learned=True)


class Projection(nn.Module):
    """A linear map and a shift; axes that the data do not have are zero."""

    def __init__(self, width: int, dim: int, *, whiten: bool, learned: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim).requires_grad_(learned)
        self.whiten = whiten

    @torch.no_grad()
    def start(self, vectors: Float[Tensor, "items width"]) -> None:
        """Principal axes of the vectors."""
        mean = vectors.double().mean(0)
        centred = vectors.double() - mean
        covariance = centred.T @ centred / len(vectors)
        variances, axes = torch.linalg.eigh(covariance)  # ascending
        dim = min(self.linear.out_features, len(variances))
        axes, variances = axes.flip(1)[:, :dim], variances.flip(0)[:dim]
        real = variances > 1e-10 * variances.sum()
        axes = torch.where(real, axes, 0.0)
        if self.whiten:
            axes = axes / torch.where(real, variances, 1.0).sqrt()
        self.linear.weight.zero_()
        self.linear.weight[:dim] = axes.T.float()
        self.linear.bias.copy_(-(self.linear.weight @ mean.float()))

    def forward(self, vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """The projected vectors."""
        return self.linear(vectors)


Poses = ScaledIdentityPoses | LowRankPoses | FullPoses
"""Modules that give the votes of one level."""


class ScaledIdentity(Config):
    """W_k = w I: as published at the start, and about a hundred times cheaper than full poses."""

    kind: Literal["scaled_identity"] = "scaled_identity"
    scale: float = Field(0.5, gt=0, lt=1)
    """w."""
    learned: bool = False
    """Whether w is learned, within 0 and 1. With reconstruction from the votes it then grows until
    the residual is gone without the codes saying more."""

    def build(self, dim: int, num_capsules: int) -> Poses:
        """The poses of one level."""
        return ScaledIdentityPoses(dim, num_capsules, self.scale, learned=self.learned)

    def row_floats(self, dim: int, num_capsules: int) -> int:
        """Numbers that routing holds for one row, about."""
        return 6 * num_capsules


class LowRank(Config):
    """W_k = w I and a product of low rank."""

    kind: Literal["low_rank"] = "low_rank"
    scale: float = Field(0.5, gt=0)
    """w."""
    rank: int = Field(4, gt=0)
    """Rank of a capsule's own part."""

    def build(self, dim: int, num_capsules: int) -> Poses:
        """The poses of one level."""
        return LowRankPoses(dim, num_capsules, self.scale, self.rank)

    def row_floats(self, dim: int, num_capsules: int) -> int:
        """Numbers that routing holds for one row, about."""
        return (6 + 3 * self.rank) * num_capsules


class Full(Config):
    """A matrix per capsule, as published: the votes of a batch are batch x codes x dim numbers."""

    kind: Literal["full"] = "full"
    scale: float = Field(0.5, gt=0)
    """w of the start at w I."""

    def build(self, dim: int, num_capsules: int) -> Poses:
        """The poses of one level."""
        return FullPoses(dim, num_capsules, self.scale)

    def row_floats(self, dim: int, num_capsules: int) -> int:
        """Numbers that routing holds for one row, about."""
        return 3 * dim * num_capsules


Pose = Annotated[ScaledIdentity | LowRank | Full, Field(discriminator="kind")]


class ItemScale(Config):
    """Every residual is brought to one length before it is routed, as the item itself is.

    Residuals of one level differ in length, and an inner product favours long capsules: divided by
    their mean alone, most short ones would go to whatever capsule is long.
    """

    kind: Literal["item"] = "item"
    length: float = Field(2.0, gt=0)
    """Length n that is routed, and that centres have about. With poses 0.5 I no confidence is above
    m^2 / (0.5 + m^2), m = 1.5 n, which is where tau must be below: 0.818 of n = 1, 0.947 of 2."""

    def scale(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """[batch, 1] or []: what the residual is divided by."""
        lengths = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        return lengths.clamp(min=1e-6) / self.length

    def sigma(self, mean_length: Tensor) -> Tensor:
        """The scale of an item of which only the codes are known."""
        return mean_length.clamp(min=1e-6) / self.length


class MeanScale(Config):
    """Residuals of a level are divided by their mean length, a running mean in training."""

    kind: Literal["mean"] = "mean"

    def scale(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """[batch, 1] or []: what the residual is divided by."""
        return sigma

    def sigma(self, mean_length: Tensor) -> Tensor:
        """The scale of an item of which only the codes are known."""
        return mean_length.clamp(min=1e-6)


class NoScale(Config):
    """Residuals are routed as they are, as published."""

    kind: Literal["none"] = "none"

    def scale(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """[batch, 1] or []: what the residual is divided by."""
        return torch.ones_like(sigma)

    def sigma(self, mean_length: Tensor) -> Tensor:
        """The scale of an item of which only the codes are known."""
        return torch.ones_like(mean_length)


Scaling = Annotated[ItemScale | MeanScale | NoScale, Field(discriminator="kind")]


class FromCentres(Config):
    """sum_k c_k mu_k: only what the codes can say leaves the residual."""

    kind: Literal["centres"] = "centres"

    def reconstruct(self, votes: Votes, weights: Tensor, centres: Tensor) -> Tensor:
        """[batch, dim] reconstruction of a level's scaled input."""
        # DIFF: as published `FromPoses`.
        return weights @ centres


class FromPoses(Config):
    """sum_k c_k squash(u_k), as published: the votes may copy the residual beside the codes."""

    kind: Literal["poses"] = "poses"

    def reconstruct(self, votes: Votes, weights: Tensor, centres: Tensor) -> Tensor:
        """[batch, dim] reconstruction of a level's scaled input."""
        return votes.mix(weights * squash_factors(votes))


Reconstruction = Annotated[FromCentres | FromPoses, Field(discriminator="kind")]


class ResidualCentres(Config):
    """A centre follows the residuals that are routed to its capsule, as a k-means centre does."""

    kind: Literal["residuals"] = "residuals"

    def sums(self, votes: Votes, inputs: Tensor, weights: Tensor) -> Tensor:
        """[codes, dim] weighted sum over the rows of what the centres follow."""
        return weights.T @ inputs


class OutputCentres(Config):
    """A centre follows its capsule's outputs squash(u_k), which are shorter than the residuals."""

    kind: Literal["outputs"] = "outputs"

    def sums(self, votes: Votes, inputs: Tensor, weights: Tensor) -> Tensor:
        """[codes, dim] weighted sum over the rows of what the centres follow."""
        return votes.capsule_sums(weights * squash_factors(votes))


Centres = Annotated[ResidualCentres | OutputCentres, Field(discriminator="kind")]


class SoftUpdate(Config):
    """Every capsule takes its share out of the residual, as published."""

    kind: Literal["soft"] = "soft"

    def shares(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch codes"]:
        """Shares of the capsules in the reconstruction."""
        return weights


class HardWinner(Config):
    """The winner alone is taken out of the residual (ablation); gradients pass to all weights."""

    kind: Literal["hard_winner"] = "hard_winner"

    def shares(self, weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch codes"]:
        """Shares of the capsules in the reconstruction."""
        return winner(weights)


Update = Annotated[SoftUpdate | HardWinner, Field(discriminator="kind")]


def winner(weights: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch codes"]:
    """One for the largest weight, zero for others, with the gradient of the weights."""
    chosen = torch.zeros_like(weights).scatter(1, weights.argmax(1, keepdim=True), 1.0)
    return chosen + weights - weights.detach()
