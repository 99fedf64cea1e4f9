"""CapsID's losses on routing weights, and how they are weighted.

Sources: CapsID, arXiv:2605.05096 (which losses; the spread's margins); Hinton, Sabour and Frosst,
    ICLR 2018 (form of the spread).
The paper does not say: any weight, how the length is made differentiable, the spread's target (here
    the winning capsule). Centre tie, reconstruction from codes and usage entropy are not the
    paper's: without them a reconstruction from the votes can be perfect with codes that say
    nothing, and all items may choose one capsule.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rankloom.config import Config
from rankloom.layers.capsule_routing import squash_factors
from rankloom.retrieval.tokenizers.capsid_level import LevelRouting


class LossWeights(Config):
    """Weights of the parts of CapsID's objective; the reconstruction itself (route) has weight 1.

    The published names are lambda_s (spread) and lambda_l (length).
    """

    spread: float = Field(0.01, ge=0)
    """Of the margin between the winner's weight and each other's."""
    first_margin: float = Field(0.2, ge=0, le=1)
    """The margin at the first step."""
    last_margin: float = Field(0.9, ge=0, le=1)
    """The margin at the last step; linear between the two."""
    length: float = Field(0.01, ge=0)
    """Of the expected number of codes."""
    usage: float = Field(0.1, ge=0)
    """Of the entropy of the mean routing weights of a batch, which is to be large."""
    centre_tie: float = Field(0.25, ge=0)
    """Of the squared distance of capsules' outputs to their centres."""
    code_reconstruction: float = Field(1.0, ge=0)
    """Of the squared error of the sum of the winners' centres."""

    def margin(self, progress: float) -> float:
        """The spread's margin after a share of the steps."""
        return self.first_margin + progress * (self.last_margin - self.first_margin)


def spread(weights: Float[Tensor, "batch codes"], margin: float) -> Float[Tensor, " batch"]:
    """Sum over the losing capsules of max(0, margin - (winner's weight - theirs))^2."""
    largest = weights.amax(1, keepdim=True)
    losses = torch.relu(margin - (largest - weights)).square().sum(1)
    return losses - margin**2  # the winner's own term


def expected_length(stop: Float[Tensor, "batch levels"]) -> Float[Tensor, " batch"]:
    """Mean number of codes: sum over levels of the product over those before of 1 - stop."""
    goes_on = torch.cumprod(1 - stop[:, :-1], dim=1)
    return 1 + goes_on.sum(1)


def entropy(shares: Float[Tensor, " codes"]) -> Float[Tensor, ""]:
    """Entropy in nats of shares that sum to one."""
    # Of a share of zero the logarithm's gradient would be infinite.
    return -(shares * shares.clamp(min=1e-12).log()).sum()


def centre_distances(
    routing: LevelRouting, centres: Float[Tensor, "codes dim"]
) -> Float[Tensor, " batch"]:
    """sum_k c_k ||squash(u_k) - mu_k||^2, with no output ever held."""
    factors = squash_factors(routing.votes)
    distances = (
        factors.square() * routing.votes.squared_lengths()
        - 2 * factors * routing.votes.products(centres)
        + centres.square().sum(1)
    )
    return (routing.weights * distances).sum(1)
