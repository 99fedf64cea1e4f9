"""HSTU's gated attention: SiLU in place of a softmax.

Source: Zhai et al., ICML 2024, arXiv:2402.17152, section 3, and its published code, which HSTU for
    ranking and HSTU that scores items share.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import linear
from rankloom.layers.tokens.copies import copy_tokens

EPS = 1e-6
"""Added to the variance by every norm within a layer."""


class SiLUAttention(nn.Module):
    """W_O (U * LN([A[h] V[h] for every h])), of the tokens from `first_query` on to all tokens.

        U, V, Q, K = split(SiLU(LN(x) W)),  A = SiLU(Q[h] K[h]^T + r) * visible

    where LN is a layer norm without weights.

    Args:
        dim: width of a token.
        num_heads: heads.
        head_dim: width of a head's queries, keys, values and gates.
        bias: gives r [*batch_and_head, tokens, tokens] of the gaps of time; where it is made for
            more tokens than there are, the first of them count.
        dropout: share of the gated units dropped in training.
        pre_norm: whether the tokens are normalised first.
        first_query: the first token that looks at others; only it and those after it come out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        bias: nn.Module,
        *,
        dropout: float = 0.0,
        pre_norm: bool = True,
        first_query: int = 0,
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.first_query = first_query
        self.queries = _LastTokens(first_query) if first_query else nn.Identity()
        self.num_heads = num_heads
        self.norm = (
            nn.LayerNorm(dim, eps=EPS, elementwise_affine=False) if pre_norm else nn.Identity()
        )
        self.asking = _projection(dim, 2 * width)
        """Gates U and queries Q."""
        self.asked = _projection(dim, 2 * width)
        """Keys K and values V."""
        self.bias = bias
        self.attended_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.dropout = Dropout(dropout)
        self.out = linear(width, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        visible: Float[Tensor, "*batch_and_head tokens tokens"],
        gaps: Int[Tensor, "batch tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch last_tokens dim"]:
        """The attended tokens.

        Args:
            x: the tokens.
            visible: what the weight of a key is multiplied by for a query: 1 over the number of
                tokens where it may look, else 0.
            gaps: buckets of time between tokens, for a bias that reads them.
        """
        x = self.norm(x)
        gates, q = functional.silu(self.asking(self.queries(x))).chunk(2, dim=-1)
        k, v = functional.silu(self.asked(x)).chunk(2, dim=-1)
        q, k, v = (torch.unflatten(p, -1, (self.num_heads, -1)).transpose(1, 2) for p in (q, k, v))
        # From here on the tokens axis of a table's rows is that of the queries.
        bias = self.bias(gaps)[..., : x.shape[1], : x.shape[1]]
        bias, visible = (table[..., self.first_query :, :] for table in (bias, visible))
        scores = q @ k.transpose(-1, -2) + bias  # [batch, heads, queries, tokens]
        attended = (functional.silu(scores) * visible) @ v  # [batch, heads, queries, head_dim]
        attended = self.attended_norm(attended.transpose(1, 2).flatten(2))
        return self.out(self.dropout(gates * attended))


class _LastTokens(nn.Module):
    """The tokens from a certain one on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch last_tokens dim"]:
        return copy_tokens(x, self.first, x.shape[1])


def _projection(in_dim: int, out_dim: int) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer
