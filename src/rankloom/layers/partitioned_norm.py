"""Normalisation by the statistics of the row's own scenario.

Source: Sheng et al., CIKM 2021, arXiv:2101.11427 (STAR):

    PN(x) = (gamma * gamma[s]) * (x - mean[s]) / sqrt(var[s] + eps) + (beta + beta[s])

with the statistics of the batch's rows of scenario s in training, and of the moving averages of s
at evaluation. A scenario's averages are plain means over its first batches, until the momentum's
share is the larger one: a small scenario is not held back by what its averages start from. The
paper does not say what a scenario gets that a training batch has one row of: the moving averages,
which stay as they are; nor what a row of an unknown scenario gets: the means over the known
scenarios, of their statistics and of their parameters.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.layers.scenarios import with_unknown


class PartitionedNorm(nn.Module):
    """Every scenario is normalised by itself, all of them in one pass over the batch.

    Args:
        num_scenarios: known scenarios, K.
        width: units of a row.
        momentum: share of a batch in the moving averages.
        eps: added to the variances.
        affine: whether gains and shifts follow, common ones and those of the scenario.
    """

    running_mean: Tensor
    """[scenarios, width]: moving averages of the means."""
    running_var: Tensor
    """[scenarios, width]: moving averages of the unbiased variances."""
    num_updates: Tensor
    """[scenarios]: batches that had two rows of the scenario or more."""

    def __init__(
        self,
        num_scenarios: int,
        width: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.affine = _Affine(num_scenarios, width) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_scenarios, width))
        self.register_buffer("running_var", torch.ones(num_scenarios, width))
        self.register_buffer("num_updates", torch.zeros(num_scenarios))

    def forward(
        self, x: Float[Tensor, "batch width"], scenario: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch width"]:
        """The normalised rows.

        Args:
            x: the rows.
            scenario: 0 to K; 0 is the unknown scenario.
        """
        x = x.to(self.running_mean.dtype)  # half precision loses what a variance is made of
        index = scenario.long()
        if self.training:
            centred, var = self._of_batch(x, index)
        else:
            centred = x - with_unknown(self.running_mean).index_select(0, index)
            var = with_unknown(self.running_var)
        scale = torch.rsqrt(var + self.eps)
        if self.affine is None:
            return centred * scale.index_select(0, index)
        scale, shift = self.affine(scale)
        return centred * scale.index_select(0, index) + shift.index_select(0, index)

    def _of_batch(
        self, x: Float[Tensor, "batch width"], index: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "scenarios_plus_one width"]]:
        """Rows less their scenario's mean, and the variances; the moving ones where need be."""
        zeros = x.new_zeros(len(self.running_mean) + 1, x.shape[1])
        count = zeros[:, 0].index_add(0, index, torch.ones_like(x[:, 0]))[1:, None]
        learns = count > 1  # [scenarios, 1]: one row has no variance
        sums = zeros.index_add(0, index, x)[1:]
        mean = torch.where(learns, sums / count.clamp(min=1), self.running_mean)
        centred = x - with_unknown(mean).index_select(0, index)
        squares = zeros.index_add(0, index, centred.square())[1:]
        var = torch.where(learns, squares / count.clamp(min=1), self.running_var)
        with torch.no_grad():
            self.num_updates.add_(learns[:, 0])
            share = torch.reciprocal(self.num_updates.clamp(min=1)).clamp(min=self.momentum)
            rate = share[:, None] * learns  # [scenarios, 1]
            self.running_mean.lerp_(mean, rate)
            # Unbiased, as torch's batch norm keeps it.
            unbiased = torch.where(learns, squares / (count - 1).clamp(min=1), var)
            self.running_var.lerp_(unbiased, rate)
        return centred, with_unknown(var)


class _Affine(nn.Module):
    """Gains and shifts: common ones times, and plus, those of the scenario."""

    def __init__(self, num_scenarios: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.scenario_gain = nn.Parameter(torch.ones(num_scenarios, width))
        self.scenario_shift = nn.Parameter(torch.zeros(num_scenarios, width))

    def forward(
        self, scale: Float[Tensor, "scenarios_plus_one width"]
    ) -> tuple[
        Float[Tensor, "scenarios_plus_one width"], Float[Tensor, "scenarios_plus_one width"]
    ]:
        """`scale` times the gains, and the shifts."""
        gain = self.gain * with_unknown(self.scenario_gain)
        return scale * gain, self.shift + with_unknown(self.scenario_shift)
