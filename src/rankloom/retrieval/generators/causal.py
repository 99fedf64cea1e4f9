"""Settings of the causal Transformer that several retrieval models are made of."""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from rankloom.config import Config
from rankloom.layers.causal_transformer import CausalLayer, CausalTransformer
from rankloom.layers.mlp import ActivationName
from rankloom.layers.norm import RMSNorm
from rankloom.layers.token_mlp import TokenMLP, TokenSwiGLU


class SwiGLU(Config):
    """W_down (SiLU(W_gate x) * (W_up x))."""

    kind: Literal["swiglu"] = "swiglu"
    hidden_dim: int = Field(344, gt=0)
    """Width of the hidden layer."""

    def build(self, dim: int, dropout: float) -> nn.Module:
        """The network of one layer."""
        return TokenSwiGLU(None, dim, self.hidden_dim, dropout=dropout)


class FeedForward(Config):
    """W2 act(W1 x)."""

    kind: Literal["mlp"] = "mlp"
    hidden_dim: int = Field(512, gt=0)
    """Width of the hidden layer."""
    activation: ActivationName = "relu"
    """Its activation."""

    def build(self, dim: int, dropout: float) -> nn.Module:
        """The network of one layer."""
        return TokenMLP(None, dim, self.hidden_dim, activation=self.activation, dropout=dropout)


Network = Annotated[SwiGLU | FeedForward, Field(discriminator="kind")]
"""What follows attention in a layer."""
NormName = Literal["rms", "layer"]
"""Norms that a config may name."""


def build_norm(name: NormName, dim: int) -> nn.Module:
    """The norm behind its name."""
    return RMSNorm(dim, eps=1e-6) if name == "rms" else nn.LayerNorm(dim)


class CausalConfig(Config):
    """Sizes of a causal Transformer."""

    dim: int = Field(128, gt=0)
    """Width of a position."""
    num_layers: int = Field(4, ge=1)
    """Layers."""
    num_heads: int = Field(4, ge=1)
    """Heads of every layer; divides `dim`."""
    norm: NormName = "rms"
    """Norm before each sublayer and at the end."""
    network: Network = SwiGLU()
    """What follows attention in a layer."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of units dropped in training: of the input, of hidden units, of what sublayers add."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training; on a processor it doubles their cost."""

    def build_transformer(self) -> CausalTransformer:
        """The layers.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        layers = [
            CausalLayer(
                self.dim,
                self.num_heads,
                self.network.build(self.dim, self.dropout),
                lambda dim: build_norm(self.norm, dim),
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
            )
            for _ in range(self.num_layers)
        ]
        return CausalTransformer(layers, build_norm(self.norm, self.dim))
