"""Gates: networks whose outputs weigh another tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.mlp import MLP


class FeatureGate(nn.Module):
    """FinalMLP's feature selection: gates 2 sigmoid(MLP(context)) on every feature unit.

    Source: Mao et al., AAAI 2023, arXiv:2304.00902, equations 5 and 6.
    The factor two makes a new gate close to one.
    """

    def __init__(self, context_width: int, hidden: Sequence[int], width: int) -> None:
        super().__init__()
        self.network = MLP(context_width, hidden, out_features=width)

    def forward(
        self, context: Float[Tensor, "gates context"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        """The gated features; a context of one row gates every row of `x` alike."""
        return x * (2 * torch.sigmoid(self.network(context)))
