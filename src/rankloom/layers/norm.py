"""Root-mean-square normalisation in the precision of its gains."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a gain for every dimension.

    Source: Zhang and Sennrich, NeurIPS 2019, arXiv:1910.07467. Under autocast the input is raised
    to the gains' precision: squares in half precision lose what the mean is made of, and torch's
    fused kernel takes one precision only.
    """

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """The normalised vectors."""
        weight = self.weight
        return functional.rms_norm(x.to(weight.dtype), self.normalized_shape, weight, self.eps)
