"""A long history as a few tokens: learned queries that attend to all of its events.

Equation: Z = Q + W_O Attention(Q W_Q, K = RMSNorm(X) W_K, V = RMSNorm(X) W_V), Q learned
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.expert_attention import ExpertAttention
from rankloom.layers.norm import RMSNorm


class EventCompression(nn.Module):
    """Tokens in the place of events, as many as there are learned queries.

    Args:
        dim: width of a token.
        num_queries: tokens after it.
        num_heads: heads; divides `dim`.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, dim: int, num_queries: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, dim).normal_(std=dim**-0.5))
        """[queries, dim]: of unit length, about."""
        self.norm = RMSNorm(dim)
        self.attention = ExpertAttention(dim, num_heads, dropout=dropout)

    def forward(
        self, x: Float[Tensor, "batch events dim"], real: Bool[Tensor, "batch events"]
    ) -> tuple[Float[Tensor, "batch queries dim"], Bool[Tensor, "batch queries"]]:
        """The tokens, and whether they are real: where the row has an event at all.

        Args:
            x: tokens of the events.
            real: False at padding.
        """
        # Laid out for every row: an exported model would ask whether expanded ones are, and then
        # refuse one row.
        queries = self.queries.repeat(x.shape[0], 1, 1)
        k, v = self.attention.keys_values(self.norm(x), None)
        found = self.attention.attend(queries, None, k, v, real[:, None, None])
        return queries + found, real.any(1, keepdim=True).expand(-1, queries.shape[1])
