"""DLF: explicit and implicit interactions fused in every layer, low orders kept.

Source: Wang et al., SIGIR 2025, arXiv:2505.19182, sections 4.2 to 4.4.
Equations, for a layer's input E of N tokens (E1: the fields' vectors):
    low order      Z_L = ReLU(W_LO (E1 (E^T W_LI)) + b)      one order more per layer
    current order  Z_C = ReLU(W_CO (E (E^T W_CI)) + b)       twice the order per layer
    implicit       Z_D = ReLU(W_D E + b)
    fusion         Z = [Z_L; Z_C; Z_D; Att(Z_L, Z_C, Z_D)]   `layers.stream_attention`
    residual       E' = Z + max(eps, W_G E) * E
    logits         w^T vec(E[L+1]) + b
Differs from the paper: a LayerNorm after the residual, as in the author's public code; the paper
    names no norm. `cross_product` is a block of ours.
The paper does not say:
    - the shapes of W_LI, W_LO, W_CI, W_CO: no reading fits all it prints. `flatten` (default, the
      author's code): N x rank products, LayerNorm, one matrix to M tokens. `token` (nearest to the
      printed sizes): W_LI is N x rank, W_LO rank x dim, and tokens are projected from N to M.
    - how E1 meets another number of tokens: a bias-free projection over tokens.
    - on which side W_D acts: here on the features, then tokens are projected from N to M.
    - how the residual adds N tokens to 4 M: a bias-free projection over tokens, after the gate.
    - whether f_att is one for all streams: here it is, as it is printed without an index, with
      Q, K and V of every further pass from weights of its own.
    - where dropout acts: here on Z.
    - what the ablated and alternative fusions are in detail: see their configs.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.dropout import Dropout
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.factorization import token_projection
from rankloom.layers.mlp import linear
from rankloom.ranking.dlf_parts import (
    Block,
    Concatenation,
    CurrentOrder,
    Fusion,
    Gated,
    Implicit,
    LateFusion,
    LayerFusion,
    LowOrder,
    NetworkAwareFusion,
    Residual,
    Tokens,
)
from rankloom.schema import Schema


class DLFConfig(Config):
    """Streams, fusion and residual of the layers, and how many there are."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, and of every token."""
    num_layers: int = Field(3, ge=1)
    """Layers."""
    num_tokens: int = Field(16, gt=0)
    """Tokens that every block gives (M); a layer gives M per stream and M fused ones."""
    streams: tuple[Block, ...] = Field((LowOrder(), CurrentOrder(), Implicit()), min_length=1)
    """The interaction blocks of a layer; without the first it is the paper's `without RLI`."""
    fusion: Fusion = NetworkAwareFusion()
    """How a layer's streams meet: network_aware, attention_pooling, gate_pooling, network,
    concatenation, or late."""
    residual: Residual = Gated()
    """What a layer's input adds to its output: gated or plain."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's interaction features dropped in training."""

    def build_layers(self, num_fields: int) -> "DLFLayers | LateLayers":
        """The layers: one stack, or one for each stream."""
        if not isinstance(self.fusion, LateFusion):
            return DLFLayers(self, num_fields, self.streams, self.fusion)
        stacks = [DLFLayers(self, num_fields, (s,), Concatenation()) for s in self.streams]
        return LateLayers(stacks)


class DLFLayer(nn.Module):
    """One layer: streams, their fusion, and the residual.

    Args:
        streams: blocks, called with (the layer's input, the fields' vectors).
        fusion: makes further tokens from [batch, streams, tokens, dim]; None: there are none.
        residual: what of the input is added, before its tokens are projected.
        in_tokens: tokens of the input.
        out_tokens: tokens of the output.
        dim: width of a token.
        dropout: share of interaction features dropped in training.
    """

    def __init__(
        self,
        streams: list[nn.Module],
        fusion: nn.Module | None,
        residual: nn.Module,
        *,
        in_tokens: int,
        out_tokens: int,
        dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(streams)
        self.fusion = fusion
        self.residual = residual
        self.project = token_projection(in_tokens, out_tokens)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim)  # DIFF: the paper names no norm

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        """The next layer's input."""
        streams = torch.stack([stream(x, x0) for stream in self.streams], dim=1)
        z = streams.flatten(1, 2)  # [batch, streams * tokens, dim]
        if self.fusion is not None:
            z = torch.cat([z, self.fusion(streams)], dim=1)
        return self.norm(self.dropout(z) + self.project(self.residual(x)))


class DLFLayers(nn.Module):
    """A stack of layers over the fields' vectors.

    Args:
        config: the model's config.
        num_fields: tokens of the first layer's input.
        streams: blocks of every layer.
        fusion: how they meet.
    """

    num_tokens: int
    """Tokens of the last layer's output."""

    def __init__(
        self,
        config: DLFConfig,
        num_fields: int,
        streams: tuple[Block, ...],
        fusion: LayerFusion,
    ) -> None:
        super().__init__()
        dim, each = config.embedding_dim, config.num_tokens
        layers: list[DLFLayer] = []
        tokens = num_fields
        for _ in range(config.num_layers):
            fused = fusion.build(len(streams), dim)
            self.num_tokens = each * (len(streams) + (fused is not None))
            layers.append(
                DLFLayer(
                    [block.build(num_fields, tokens, dim, each) for block in streams],
                    fused,
                    config.residual.build(dim),
                    in_tokens=tokens,
                    out_tokens=self.num_tokens,
                    dim=dim,
                    dropout=config.dropout,
                )
            )
            tokens = self.num_tokens
        self.layers = nn.ModuleList(layers)

    def forward(self, x0: Float[Tensor, "batch fields dim"]) -> Tokens:
        """The last layer's output."""
        x = x0
        for layer in self.layers:
            x = layer(x, x0)
        return x


class LateLayers(nn.Module):
    """A stack of layers for every stream, side by side."""

    num_tokens: int
    """Tokens of all stacks' outputs."""

    def __init__(self, stacks: list[DLFLayers]) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(stacks)
        self.num_tokens = sum(stack.num_tokens for stack in stacks)

    def forward(self, x0: Float[Tensor, "batch fields dim"]) -> Tokens:
        """The stacks' outputs, one after another."""
        return torch.cat([stack(x0) for stack in self.stacks], dim=1)


class DLF(nn.Module):
    """Fused layers over all fields; tasks share everything but the head."""

    def __init__(self, config: DLFConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        body = config.build_layers(self.embedding.num_fields)
        self.body = body
        self.head = linear(body.num_tokens * config.embedding_dim, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x = self.body(self.embedding(batch))  # [batch, tokens, dim]
        return self.head(x.flatten(1))
