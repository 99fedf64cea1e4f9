"""What attention adds to the product of a query and a key for where and when the two stand.

Source: Zhai et al., ICML 2024, arXiv:2402.17152, and its published code: one number per distance,
    one per bucket of time, the same for all heads, drawn with a standard deviation of 0.02.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.02
"""Standard deviation of new biases."""

BUCKET_WIDTH = 0.301
"""Natural logarithm by which a bucket's longest gap exceeds that of the bucket before."""


class PairBias(nn.Module):
    """A number for every ordered pair of tokens."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, num_tokens).normal_(std=INIT_STD))
        """[queries, keys]."""

    def forward(self) -> Float[Tensor, "tokens tokens"]:
        """The biases, queries first."""
        return self.weight


class PositionBias(nn.Module):
    """A number for every distance between two tokens, negative ones too."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * num_tokens - 1).normal_(std=INIT_STD))
        """[distances]: that of a query i to a key j stands at i - j + num_tokens - 1."""
        position = torch.arange(num_tokens)
        distance = position[:, None] - position + num_tokens - 1  # [queries, keys]
        self.register_buffer("_distance", distance, persistent=False)
        self._distance: Tensor

    def forward(self) -> Float[Tensor, "tokens tokens"]:
        """The biases, queries first."""
        return self.weight[self._distance]


class TimeGapBias(nn.Module):
    """A number for every bucket of the time between two tokens."""

    def __init__(self, num_buckets: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_buckets, 1).normal_(std=INIT_STD))
        """[buckets, 1]."""

    def forward(
        self, buckets: Int[Tensor, "batch tokens tokens"]
    ) -> Float[Tensor, "batch tokens tokens"]:
        """The biases of `time_gap_buckets`."""
        return functional.embedding(buckets, self.weight).squeeze(-1)


def time_gap_buckets(
    time: Int[Tensor, "batch tokens"], num_buckets: int
) -> Int[Tensor, "batch tokens tokens"]:
    """Buckets of the time between every two tokens: floor(ln(gap) / 0.301), the gap at least 1 s.

    Args:
        time: int64 seconds.
        num_buckets: buckets; the last one also takes all longer gaps.

    Returns:
        int64 buckets, the same for both orders of a pair.
    """
    gap = (time[:, :, None] - time[:, None, :]).abs().clamp(min=1)
    buckets = (gap.float().log() / BUCKET_WIDTH).long()
    return buckets.clamp(max=num_buckets - 1)
