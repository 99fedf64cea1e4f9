"""The encoder layer of the first Transformer: a norm after every skip."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.attention import SelfAttention
from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import ActivationName, linear
from rankloom.layers.token_mlp import TokenMLP


class EncoderLayer(nn.Module):
    """z = Norm(x + Dropout(W_O Attention(x))), then Norm(z + Dropout(W2 act(W1 z + b1) + b2)).

    Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, section 3.1. The projections of
    attention have no biases.

    Args:
        dim: width of a token.
        num_heads: heads; divides `dim`.
        hidden_dim: width of the network's hidden layer.
        activation: its activation.
        attention_dropout: share of attention weights dropped in training.
        dropout: share of units dropped in training, of what attention and what the network give.
        hidden_dropout: share of the network's hidden units dropped in training.
        attention_norm: whether a norm follows the first skip.
        network_norm: whether a norm follows the second.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        activation: ActivationName = "relu",
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        attention_norm: bool = True,
        network_norm: bool = True,
    ) -> None:
        super().__init__()
        self.attend = SelfAttention(dim, dim, num_heads, dropout=attention_dropout)
        self.out = linear(dim, dim, bias=False)
        self.attention_norm = nn.LayerNorm(dim) if attention_norm else nn.Identity()
        self.network = TokenMLP(
            None, dim, hidden_dim, activation=activation, dropout=hidden_dropout
        )
        self.network_norm = nn.LayerNorm(dim) if network_norm else nn.Identity()
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "#batch #heads #tokens #keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens after it; `mask` as in `layers.attention.attention`."""
        x = self.attention_norm(x + self.dropout(self.out(self.attend(x, mask))))
        return self.network_norm(x + self.dropout(self.network(x)))
