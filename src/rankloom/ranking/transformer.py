"""A plain pre-norm Transformer over a row's events and fields.

Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762; the place of the norms: Xiong et al., ICML
    2020, arXiv:2002.04745. The plainest host of a connection.
Equations: z = x + Attention(Norm(x)), x' = z + MLP(Norm(z)), logits = MLP(pool(Norm(x[L])))
Differs from the papers: RMSNorm, and no positions of fields beyond their tokens' own biases.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.attention import SelfAttention
from rankloom.layers.mlp import linear
from rankloom.layers.token_mlp import TokenMLP
from rankloom.ranking.connections import connect, input_norm
from rankloom.ranking.token_network import SequenceTokenNetwork
from rankloom.schema import Schema


class TransformerConfig(SequenceTokenNetwork):
    """Sizes of the layers."""

    num_heads: int = Field(4, gt=0)
    """Heads of every layer; divides `dim`."""
    expansion: int = Field(4, gt=0)
    """Width of the network's hidden layer, in widths of a token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights and of hidden units dropped in training."""


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.attend = SelfAttention(
            config.dim, config.dim, config.num_heads, dropout=config.dropout
        )
        self.out = linear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Tensor | None
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.out(self.attend(self.norm(x), mask))


class _StreamAttention(nn.Module):
    """Queries, keys and values are made of tokens of their own, each with a norm of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList([input_norm(config.connection, config.dim) for _ in range(3)])
        self.attend = SelfAttention(
            config.dim, config.dim, config.num_heads, dropout=config.dropout
        )
        self.out = linear(config.dim, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Tensor | None,
        *,
        query: Float[Tensor, "batch tokens dim"],
        key: Float[Tensor, "batch tokens dim"],
        value: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch tokens dim"]:
        query, key, value = (
            norm(tokens) for norm, tokens in zip(self.norms, (query, key, value), strict=True)
        )
        return self.out(self.attend.of_streams(query, key, value, mask))


class _MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.network = TokenMLP(
            None, config.dim, config.expansion * config.dim, dropout=config.dropout
        )

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Tensor | None
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.network(self.norm(x))


class Transformer(nn.Module):
    """Attention layers over all tokens of a row."""

    def __init__(self, config: TransformerConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        attention = _StreamAttention if config.connection.separate_streams else _Attention
        layers = [[attention(config), _MLP(config)] for _ in range(config.num_layers)]
        self.stack = connect(layers, config.connection, config.dim, takes_streams=True)
        self.head = config.build_head(self.stack.out_dim, self.tokens.num_fields, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        tokens = self.tokens(batch)
        mask = None if tokens.mask is None else tokens.mask[:, None, None]  # [batch, 1, 1, keys]
        x = self.stack(tokens.x, mask)
        return self.head(x[:, tokens.num_events :])
