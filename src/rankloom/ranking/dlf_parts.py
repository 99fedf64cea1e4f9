"""DLF's exchangeable parts: interaction blocks, residuals and fusions, and their configs.

The equations and what the paper leaves open stand in `rankloom.ranking.dlf`. A block is called with
(the layer's input, the fields' vectors) and gives [batch, num_tokens, dim]; a fusion is called with
[batch, streams, num_tokens, dim] and gives [batch, num_tokens, dim].
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.factorization import FactorizationBlock, TokenLinear, token_projection
from rankloom.layers.mlp import MLP, linear
from rankloom.layers.stream_attention import NetworkAwareAttention, Streams

Tokens = Float[Tensor, "batch tokens dim"]


class Flatten(Config):
    """All products of a block side by side, normalised, and one matrix to the block's tokens."""

    kind: Literal["flatten"] = "flatten"

    def build(self, in_tokens: int, dim: int, rank: int, out_tokens: int) -> nn.Module:
        """The block of (left tokens, right tokens), `in_tokens` each."""

        def network(width: int) -> nn.Module:
            return nn.Sequential(linear(width, out_tokens * dim), nn.ReLU())

        return FactorizationBlock(
            in_tokens, in_tokens, dim, rank=rank, out_tokens=out_tokens, network=network
        )


class PerToken(Config):
    """The products of one token make one token, and tokens are projected to the block's number."""

    kind: Literal["token"] = "token"

    def build(self, in_tokens: int, dim: int, rank: int, out_tokens: int) -> nn.Module:
        """The block of (left tokens, right tokens), `in_tokens` each."""
        return _PerToken(in_tokens, dim, rank, out_tokens)


Reading = Annotated[Flatten | PerToken, Field(discriminator="kind")]


class LowOrder(Config):
    """The layer's input crossed with the fields' own vectors."""

    kind: Literal["low_order"] = "low_order"
    rank: int = Field(24, gt=0)
    """Columns of W_LI; a layer with fewer tokens takes as many."""
    reading: Reading = Flatten()
    """Which shapes the equation has: flatten or token."""

    def build(self, num_fields: int, in_tokens: int, dim: int, out_tokens: int) -> nn.Module:
        """The block."""
        block = self.reading.build(in_tokens, dim, self.rank, out_tokens)
        return _LowOrder(token_projection(num_fields, in_tokens), block)


class CurrentOrder(Config):
    """The layer's input crossed with itself."""

    kind: Literal["current_order"] = "current_order"
    rank: int = Field(24, gt=0)
    """Columns of W_CI; a layer with fewer tokens takes as many."""
    reading: Reading = Flatten()
    """Which shapes the equation has: flatten or token."""

    def build(self, num_fields: int, in_tokens: int, dim: int, out_tokens: int) -> nn.Module:
        """The block."""
        return _CurrentOrder(self.reading.build(in_tokens, dim, self.rank, out_tokens))


class Implicit(Config):
    """A linear map of every token's features with a ReLU."""

    kind: Literal["implicit"] = "implicit"

    def build(self, num_fields: int, in_tokens: int, dim: int, out_tokens: int) -> nn.Module:
        """The block."""
        return _Implicit(in_tokens, dim, out_tokens)


class CrossProduct(Config):
    """Another explicit block: tokens of the input times tokens of the fields' vectors.

    Not of the paper; it shows that other blocks can take a stream. The product is taken feature by
    feature, as cross layers take it.
    """

    kind: Literal["cross_product"] = "cross_product"

    def build(self, num_fields: int, in_tokens: int, dim: int, out_tokens: int) -> nn.Module:
        """The block."""
        return _CrossProduct(num_fields, in_tokens, dim, out_tokens)


Block = Annotated[LowOrder | CurrentOrder | Implicit | CrossProduct, Field(discriminator="kind")]


class Gated(Config):
    """max(eps, W_G E) * E, element by element; a clipped element passes W_G no gradient."""

    kind: Literal["gated"] = "gated"
    eps: float = Field(1e-6, gt=0)
    """Smallest gate, which keeps the path open."""

    def build(self, dim: int) -> nn.Module:
        """The residual path over tokens of width `dim`."""
        return GatedResidual(dim, self.eps)


class Plain(Config):
    """E as it is: the paper's `without gate`."""

    kind: Literal["plain"] = "plain"

    def build(self, dim: int) -> nn.Module:
        """The residual path over tokens of width `dim`."""
        return nn.Identity()


Residual = Annotated[Gated | Plain, Field(discriminator="kind")]


class NetworkAwareFusion(Config):
    """The paper's fusion: attention between the streams and within each."""

    kind: Literal["network_aware"] = "network_aware"
    num_passes: int = Field(1, ge=1)
    """Attention passes in a layer."""

    def build(self, num_streams: int, dim: int) -> nn.Module | None:
        """What makes the fused tokens."""
        return NetworkAwareAttention(num_streams, dim, num_passes=self.num_passes)


class AttentionPooling(Config):
    """Attention between the streams only, as the paper describes its fourth alternative."""

    kind: Literal["attention_pooling"] = "attention_pooling"

    def build(self, num_streams: int, dim: int) -> nn.Module | None:
        """What makes the fused tokens."""
        return NetworkAwareAttention(num_streams, dim, self_attention=False)


class GatePooling(Config):
    """A weighted sum of the streams, by a softmax over linear scores of all of them."""

    kind: Literal["gate_pooling"] = "gate_pooling"

    def build(self, num_streams: int, dim: int) -> nn.Module | None:
        """What makes the fused tokens."""
        return _GatePooling(num_streams, dim)


class NetworkFusion(Config):
    """A network over the streams' features, token by token (the paper's `MLP`)."""

    kind: Literal["network"] = "network"
    hidden: tuple[int, ...] = (128,)
    """Widths of its hidden layers."""

    def build(self, num_streams: int, dim: int) -> nn.Module | None:
        """What makes the fused tokens."""
        return _NetworkFusion(num_streams, dim, self.hidden)


class Concatenation(Config):
    """The streams' tokens alone: nothing is fused in the layer, the next one sees all of them."""

    kind: Literal["concatenation"] = "concatenation"

    def build(self, num_streams: int, dim: int) -> nn.Module | None:
        """What makes the fused tokens: nothing."""
        return None


class LateFusion(Config):
    """Every stream has layers of its own; they meet in the head only, as in two-stream models.

    The paper's `without NAF`. It does not say what becomes of the residual: here every stream has
    its own.
    """

    kind: Literal["late"] = "late"


LayerFusion = NetworkAwareFusion | AttentionPooling | GatePooling | NetworkFusion | Concatenation
Fusion = Annotated[LayerFusion | LateFusion, Field(discriminator="kind")]


class _PerToken(nn.Module):
    """ReLU((left (x^T W_I)) W_O + b)."""

    def __init__(self, in_tokens: int, dim: int, rank: int, out_tokens: int) -> None:
        super().__init__()
        rank = min(rank, in_tokens)
        self.compress = TokenLinear(in_tokens, rank)
        self.expand = linear(rank, dim)
        self.tokens = token_projection(in_tokens, out_tokens)

    def forward(self, left: Tokens, x: Tokens) -> Tokens:
        products = torch.bmm(left, self.compress(x).mT)  # [batch, in_tokens, rank]
        return self.tokens(torch.relu(self.expand(products)))


class _LowOrder(nn.Module):
    def __init__(self, project: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.project = project
        """The fields' vectors to the number of the layer's tokens."""
        self.block = block

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.block(self.project(x0), x)


class _CurrentOrder(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.block(x, x)


class _Implicit(nn.Module):
    def __init__(self, in_tokens: int, dim: int, out_tokens: int) -> None:
        super().__init__()
        self.features = linear(dim, dim)
        self.tokens = token_projection(in_tokens, out_tokens)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.tokens(torch.relu(self.features(x)))


class _CrossProduct(nn.Module):
    def __init__(self, num_fields: int, in_tokens: int, dim: int, out_tokens: int) -> None:
        super().__init__()
        self.raw = TokenLinear(num_fields, out_tokens)
        self.tokens = TokenLinear(in_tokens, out_tokens)
        self.features = linear(dim, dim)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return torch.relu(self.raw(x0) * self.features(self.tokens(x)))


class GatedResidual(nn.Module):
    """max(eps, W x) * x, element by element.

    Source: equation 9. Where the gate is clipped, W receives no gradient and x the factor eps.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.gate = linear(dim, dim, bias=False)
        self.eps = eps

    def forward(self, x: Tokens) -> Tokens:
        """The gated tokens."""
        return self.gate(x).clamp(min=self.eps) * x


class _GatePooling(nn.Module):
    def __init__(self, num_streams: int, dim: int) -> None:
        super().__init__()
        self.scores = linear(num_streams * dim, num_streams)

    def forward(self, streams: Streams) -> Tokens:
        scores = self.scores(streams.transpose(1, 2).flatten(2))  # [batch, tokens, streams]
        return (scores.softmax(-1).mT.unsqueeze(-1) * streams).sum(1)


class _NetworkFusion(nn.Module):
    def __init__(self, num_streams: int, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.network = MLP(num_streams * dim, (*hidden, dim))

    def forward(self, streams: Streams) -> Tokens:
        side_by_side = streams.transpose(1, 2).flatten(2)  # [batch, tokens, streams * dim]
        # Rows of tokens: an in-place activation would copy what a linear layer gives for 3 axes.
        out = self.network(side_by_side.flatten(0, 1))
        return torch.unflatten(out, 0, (-1, streams.shape[2]))
