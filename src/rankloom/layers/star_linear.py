"""A linear layer of every scenario around a common one.

Source: Sheng et al., CIKM 2021, arXiv:2101.11427 (STAR), equation: x (W * W[s]) + b + b[s]
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class StarLinear(nn.Module):
    """A linear layer for every scenario: a common one, times weights and plus biases of its own.

    A scenario's own weights start at one and its biases at zero, so that every scenario starts from
    the common layer, which starts as any does.

    Args:
        num_scenarios: known scenarios.
        in_features: width of a row.
        out_features: width of a row after it.
    """

    def __init__(self, num_scenarios: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scenario_weight = nn.Parameter(torch.ones(num_scenarios, out_features, in_features))
        self.scenario_bias = nn.Parameter(torch.zeros(num_scenarios, out_features))
        nn.init.xavier_normal_(self.weight)

    def forward(
        self, parts: Sequence[Float[Tensor, "rows in_features"]]
    ) -> list[Float[Tensor, "rows out_features"]]:
        """What every scenario's layer gives for its rows."""
        weights = self.weight * self.scenario_weight  # [scenarios, out_features, in_features]
        biases = self.bias + self.scenario_bias
        return [
            functional.linear(x, weight, bias)
            for x, weight, bias in zip(parts, weights.unbind(), biases.unbind(), strict=True)
        ]


def activate_together(
    activation: nn.Module, parts: Sequence[Float[Tensor, "rows width"]]
) -> list[Float[Tensor, "rows width"]]:
    """Units of all scenarios after an activation that they share.

    They go through it as one batch: an activation with statistics of the batch (dice) then has
    those of all rows, in training as in its moving averages.

    Args:
        activation: works on rows of units.
        parts: units of every scenario's rows.
    """
    sizes = [part.shape[0] for part in parts]
    return list(torch.split(activation(torch.cat(list(parts))), sizes))
