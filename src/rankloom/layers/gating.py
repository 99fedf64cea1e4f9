"""Gates: networks whose outputs weigh another tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.mlp import MLP, JointLinear, linear


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


class PriorGate(nn.Module):
    """PEPNet's gate on every unit of x: 2 sigmoid(W' ReLU(W [prior; sg(context)] + b) + b').

    Source: Chang et al., KDD 2023, arXiv:2302.01115, section 3.2. No gradient flows into the
    context (sg), nor is one computed.

    Args:
        prior_width: width of the prior.
        context_width: width of the context.
        hidden: width of the hidden layer.
        width: units that are gated.
    """

    def __init__(self, prior_width: int, context_width: int, hidden: int, width: int) -> None:
        super().__init__()
        self.reduce = JointLinear((prior_width, context_width), hidden)
        self.expand = linear(hidden, width)

    def forward(
        self,
        prior: Float[Tensor, "batch prior_width"],
        context: Float[Tensor, "batch context_width"],
        x: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch width"]:
        """The gated units."""
        hidden = torch.relu(self.reduce(prior, context.detach()))
        return x * (2 * torch.sigmoid(self.expand(hidden)))
