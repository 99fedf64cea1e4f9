"""Token mixing without parameters: pieces of all tokens, laid side by side anew.

Sources: the notes on RankMixer, arXiv:2507.15551, and on TokenMixer-Large, arXiv:2602.06563.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TokenMixing(nn.Module):
    """Every token is cut into `num_heads` pieces; mixed token h is the h-th piece of all tokens.

    T tokens of width D become `num_heads` tokens of width T D / num_heads. `TokenMixing(width, T)`
    over these gives the tokens back, so with as many heads as tokens mixing twice changes nothing.

    Args:
        dim: width of a token.
        num_heads: pieces of a token, and mixed tokens; divides `dim`.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            above = dim + num_heads - dim % num_heads
            below = [above - num_heads] if dim > num_heads else []
            raise ValueError(
                "mixing cuts every token into as many pieces as there are mixed tokens: "
                f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}; "
                f"nearest dim that works: {' or '.join(map(str, [*below, above]))}"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch heads mixed_dim"]:
        """The mixed tokens."""
        # [batch, tokens, heads, head_dim]
        pieces = torch.unflatten(x, 2, (self.num_heads, self.head_dim))
        return pieces.transpose(1, 2).flatten(2)
