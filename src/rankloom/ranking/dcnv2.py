"""DCN V2: explicit feature crosses beside, below, or without a network.

Source: Wang et al., WWW 2021, arXiv:2008.13535, sections 3 and 4.
Equation: x[l+1] = x[0] * (W[l] x[l] + b[l]) + x[l], or a gated mixture of low-rank experts in
    place of W[l] x[l] + b[l] (`layers.interaction.LowRankCross`).
Differs from the paper: `crossnet_only` and `stacked_parallel` are structures of the field's
    benchmarks, not of the paper.
The paper does not say: whether the layers of a low-rank mixture share their gate. Here each has its
    own; FuxiCTR shares one over all layers.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.interaction import CrossNetwork, LowRankCrossNetwork
from rankloom.layers.mlp import MLP, ActivationName, linear
from rankloom.schema import Schema


class FullCross(Config):
    """Cross layers with full matrices."""

    kind: Literal["full"] = "full"

    def build(self, width: int, num_layers: int) -> nn.Module:
        """The cross network over `width` units."""
        return CrossNetwork(width, num_layers)


class LowRankMixture(Config):
    """Cross layers that are gated mixtures of low-rank experts."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(32, gt=0)
    """Rank of every expert's matrices."""
    num_experts: int = Field(4, gt=0)
    """Experts of every layer."""

    def build(self, width: int, num_layers: int) -> nn.Module:
        """The cross network over `width` units."""
        return LowRankCrossNetwork(width, num_layers, self.rank, self.num_experts)


class DeepPart(Config):
    """A network beside or above the crosses: the deep part's settings in one piece."""

    hidden: tuple[int, ...] = (400, 400, 400)
    """Widths of the hidden layers."""
    activation: ActivationName = "relu"
    """Activation of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""
    batch_norm: bool = False
    """Batch-normalise hidden layers before their activation."""

    def build(self, width: int) -> MLP:
        """The network over `width` units; its last hidden layer is its output."""
        return MLP(
            width,
            self.hidden,
            activation=self.activation,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )
