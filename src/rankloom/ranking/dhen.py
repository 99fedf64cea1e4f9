"""DHEN: layers that are ensembles of different interactions, each over the last layer's tokens.

Source: Zhang et al., 2022, arXiv:2203.11014.
Equations: with X the tokens, one a row,
    X' = LayerNorm(Ensemble_i(Interaction_i(X)) + Shortcut(X)),  logits = MLP(all tokens)
    linear      W X
    cross       W (X^T X) + b, over all tokens of a dimension
    dot         MLP([<x[i], x[j]> for all i <= j]), cut into tokens
    attention   W TransformerEncoder(X)
    ensembles   the sum, a weighted sum, or W [Interaction_1(X); Interaction_2(X); ...]
    The shortcut is the identity, or W X where the numbers of tokens differ.
Differs from the paper: its convolution is not among the interactions; tokens that stand beside each
    other are projected to as many as the others give, so that layers are of one size.
The paper does not say, as far as the notes go: which interactions are best for all data (here cross
    and linear), the sizes of the parts, the weights that the weighted sum starts with (one).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.attention import SelfAttention
from rankloom.layers.factorization import TokenLinear, token_projection
from rankloom.layers.mlp import linear
from rankloom.layers.pairs import num_pairs, pair_inner_products
from rankloom.layers.token_mlp import TokenMLP
from rankloom.ranking.connections import Connection, PostNormConfig, connect, input_norm
from rankloom.ranking.network import Network
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import ConcatPooling, Pooling
from rankloom.schema import Schema


class LinearInteraction(Config):
    """Weighted sums of tokens."""

    kind: Literal["linear"] = "linear"

    def build(self, in_tokens: int, out_tokens: int, dim: int) -> nn.Module:
        """From `in_tokens` tokens to `out_tokens`."""
        return TokenLinear(in_tokens, out_tokens)


class CrossInteraction(Config):
    """Sums of tokens whose weights are linear in the tokens, as in DCN."""

    kind: Literal["cross"] = "cross"

    def build(self, in_tokens: int, out_tokens: int, dim: int) -> nn.Module:
        """From `in_tokens` tokens to `out_tokens`."""
        return _Cross(out_tokens, dim)


class DotInteraction(Config):
    """A network over the inner products of tokens, as in DLRM."""

    kind: Literal["dot"] = "dot"
    network: Network = Network(hidden=(256,))
    """The network over the products."""

    def build(self, in_tokens: int, out_tokens: int, dim: int) -> nn.Module:
        """From `in_tokens` tokens to `out_tokens`."""
        return _Dot(self.network, in_tokens, out_tokens, dim)


class AttentionInteraction(Config):
    """A Transformer's encoder layer, then weighted sums of tokens."""

    kind: Literal["attention"] = "attention"
    num_heads: int = Field(4, gt=0)
    """Heads; divides `dim`."""
    expansion: int = Field(4, gt=0)
    """Width of the network's hidden layer, in widths of a token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights and of hidden units dropped in training."""

    def build(self, in_tokens: int, out_tokens: int, dim: int) -> nn.Module:
        """From `in_tokens` tokens to `out_tokens`."""
        attend = SelfAttention(dim, dim, self.num_heads, dropout=self.dropout)
        network = TokenMLP(None, dim, self.expansion * dim, dropout=self.dropout)
        layer: list[nn.Module] = [nn.Sequential(attend, linear(dim, dim, bias=False)), network]
        encoder = connect([layer], PostNormConfig(), dim)
        return nn.Sequential(encoder, TokenLinear(in_tokens, out_tokens))


Interaction = Annotated[
    LinearInteraction | CrossInteraction | DotInteraction | AttentionInteraction,
    Field(discriminator="kind"),
]


class SumEnsemble(Config):
    """The sum of the interactions."""

    kind: Literal["sum"] = "sum"

    def build(self, num_interactions: int, num_tokens: int) -> nn.Module:
        """The ensemble of `num_interactions` interactions of `num_tokens` tokens each."""
        return _Sum()


class WeightedSum(Config):
    """The sum of the interactions, each times a learned number."""

    kind: Literal["weighted_sum"] = "weighted_sum"

    def build(self, num_interactions: int, num_tokens: int) -> nn.Module:
        """The ensemble of `num_interactions` interactions of `num_tokens` tokens each."""
        return _WeightedSum(num_interactions)


class Concatenation(Config):
    """All interactions' tokens beside each other, projected to as many as one gives."""

    kind: Literal["concat"] = "concat"

    def build(self, num_interactions: int, num_tokens: int) -> nn.Module:
        """The ensemble of `num_interactions` interactions of `num_tokens` tokens each."""
        return _Concatenation(num_interactions, num_tokens)


Ensemble = Annotated[SumEnsemble | WeightedSum | Concatenation, Field(discriminator="kind")]


class DHENConfig(TokenNetwork):
    """What a layer is an ensemble of."""

    connection: Connection = PostNormConfig()
    """What lies between layers of one number of tokens."""
    pooling: Pooling = ConcatPooling()
    """How tokens become one vector at the end."""
    interactions: tuple[Interaction, ...] = Field(
        (CrossInteraction(), LinearInteraction()), min_length=1
    )
    """The interactions of every layer: linear, cross, dot or attention, each with its settings."""
    ensemble: Ensemble = SumEnsemble()
    """How a layer's interactions become one: sum, weighted_sum or concat."""
    layer_tokens: int | None = Field(None, ge=1)
    """Tokens that every layer gives; none: as many as there are fields' tokens."""


class _Cross(nn.Module):
    """(W X^T) X + b: the product of all pairs of dimensions is never built."""

    def __init__(self, out_tokens: int, dim: int) -> None:
        super().__init__()
        self.weigh = linear(dim, out_tokens, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_tokens, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        weights = self.weigh(x).mT  # [batch, out, tokens]
        return weights @ x + self.bias


class _Dot(nn.Module):
    def __init__(self, network: Network, in_tokens: int, out_tokens: int, dim: int) -> None:
        super().__init__()
        self.shape = (out_tokens, dim)
        products = num_pairs(in_tokens) + in_tokens
        self.network = network.build_network(products, out_features=out_tokens * dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        squares = x.square().sum(-1)  # [batch, tokens]: every token with itself
        products = torch.cat([pair_inner_products(x), squares], dim=1)
        return torch.unflatten(self.network(products), 1, self.shape)


class _Sum(nn.Module):
    def forward(self, parts: list[Tensor]) -> Float[Tensor, "batch tokens dim"]:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


class _WeightedSum(nn.Module):
    def __init__(self, num_parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_parts))

    def forward(self, parts: list[Tensor]) -> Float[Tensor, "batch tokens dim"]:
        first, *others = self.weight.unbind()
        total = first * parts[0]
        for weight, part in zip(others, parts[1:], strict=True):
            total = torch.addcmul(total, weight, part)
        return total


class _Concatenation(nn.Module):
    def __init__(self, num_parts: int, num_tokens: int) -> None:
        super().__init__()
        self.project = TokenLinear(num_parts * num_tokens, num_tokens)

    def forward(self, parts: list[Tensor]) -> Float[Tensor, "batch tokens dim"]:
        return self.project(torch.cat(parts, dim=1))


class _Interactions(nn.Module):
    """Different interactions of the same tokens, made one; without shortcut and norm."""

    def __init__(self, config: DHENConfig, in_tokens: int, out_tokens: int) -> None:
        super().__init__()
        parts = [part.build(in_tokens, out_tokens, config.dim) for part in config.interactions]
        self.interactions = nn.ModuleList(parts)
        self.ensemble = config.ensemble.build(len(parts), out_tokens)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        return self.ensemble([interaction(x) for interaction in self.interactions])


class _Layer(nn.Module):
    """A layer's update of its tokens."""

    def __init__(self, config: DHENConfig, num_tokens: int) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.ensemble = _Interactions(config, num_tokens, num_tokens)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return self.ensemble(self.norm(x))


class _ResizingLayer(nn.Module):
    """A layer that gives another number of tokens than it reads."""

    def __init__(self, config: DHENConfig, in_tokens: int, out_tokens: int) -> None:
        super().__init__()
        self.ensemble = _Interactions(config, in_tokens, out_tokens)
        self.shortcut = token_projection(in_tokens, out_tokens)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        return self.norm(self.ensemble(x) + self.shortcut(x))


class DHEN(nn.Module):
    """Ensembles of interactions over the fields' tokens."""

    def __init__(self, config: DHENConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_fields = self.tokens.num_fields
        num_tokens = num_fields if config.layer_tokens is None else config.layer_tokens
        num_layers = config.num_layers
        self.resize: nn.Module = nn.Identity()
        if num_tokens != num_fields:
            # No connection but a shortcut of its own leads around a layer that changes the tokens.
            self.resize = _ResizingLayer(config, num_fields, num_tokens)
            num_layers -= 1
        layers = [[_Layer(config, num_tokens)] for _ in range(num_layers)]
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_tokens, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.head(self.stack(self.resize(self.tokens(batch).x)))
