"""EDCN: crosses and network that meet after every layer, and part again through field gates.

Source: Chen et al., CIKM 2021, doi:10.1145/3459637.3481915 (first at DLP-KDD 2021), section 3.
Equations, for layers l = 0 ... L-1, with f[0] the embeddings side by side:
    regulation: c[l] = g_c[l] * f[l], d[l] = g_d[l] * f[l], with one number per field in every g[l],
        a softmax(v / temperature) over fields
    crosses:    x[l] = c[0] (w[l]^T c[l]) + b[l] + c[l]
    network:    h[l] = ReLU(W[l] d[l] + a[l])
    bridge:     f[l+1] = x[l] * h[l], or x[l] + h[l], or ReLU(U [x[l]; h[l]] + u),
        or p_x * x[l] + p_h * h[l] with p_s = softmax over units of P_s ReLU(Q_s s + q_s)
    logits = W [x[L-1]; h[L-1]; f[L]] + c
Differs from the paper: `cross_residual = false` leaves the "+ c[l]" out of the crosses, and
    `batch_norm` normalises what the regulation hands to each stream. Both are of FuxiCTR's version,
    with which the field's settings were tuned (there is no residual in it).
The paper does not say: how the gates start. Here equal for all fields. Each stream has an attention
    network of its own; FuxiCTR's attention bridge applies the first stream's to both.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.interaction import RankOneCross
from rankloom.layers.mlp import MLP, ActivationName, JointLinear, linear
from rankloom.schema import Schema


class ProductBridge(Config):
    """The streams' product, unit by unit."""

    kind: Literal["product"] = "product"

    def build(self, width: int) -> nn.Module:
        """The bridge of one layer over `width` units."""
        return _Product()


class SumBridge(Config):
    """The streams' sum."""

    kind: Literal["sum"] = "sum"

    def build(self, width: int) -> nn.Module:
        """The bridge of one layer over `width` units."""
        return _Sum()


class ConcatBridge(Config):
    """A linear layer with ReLU over both streams side by side, back to their width."""

    kind: Literal["concat"] = "concat"

    def build(self, width: int) -> nn.Module:
        """The bridge of one layer over `width` units."""
        return _Concat(width)


class AttentionBridge(Config):
    """The sum of both streams, each weighted by attention over its own units."""

    kind: Literal["attention"] = "attention"

    def build(self, width: int) -> nn.Module:
        """The bridge of one layer over `width` units."""
        return _Attention(width)


Bridge = Annotated[
    ProductBridge | SumBridge | ConcatBridge | AttentionBridge, Field(discriminator="kind")
]


class NoGates(Config):
    """Both streams read the same."""

    kind: Literal["none"] = "none"

    def build(self, num_fields: int, dim: int) -> nn.Module:
        """The gates of one layer over `num_fields` fields of `dim` units."""
        return _NoGates()


class FieldGates(Config):
    """Each stream reads every field at a learned weight; a stream's weights sum to one."""

    kind: Literal["softmax"] = "softmax"
    temperature: float = Field(1.0, gt=0)
    """Divides the gates before their softmax; larger: more even weights."""

    def build(self, num_fields: int, dim: int) -> nn.Module:
        """The gates of one layer over `num_fields` fields of `dim` units."""
        return _FieldGates(num_fields, dim, self.temperature)


Regulation = Annotated[NoGates | FieldGates, Field(discriminator="kind")]


class EDCNConfig(Config):
    """Layers and what happens between them; all layers are as wide as the embeddings."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    num_layers: int = Field(3, ge=1)
    """Layers, each a cross beside a dense layer."""
    bridge: Bridge = ProductBridge()
    """How the streams meet after a layer: product, sum, concat or attention."""
    regulation: Regulation = FieldGates()
    """How they part before a layer: softmax or none."""
    cross_residual: bool = True
    """Add every cross layer's input to its output."""
    batch_norm: bool = False
    """Batch-normalise both streams' inputs of every layer."""
    activation: ActivationName = "relu"
    """Activation of the dense layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the dense layers' units dropped in training."""


class _Product(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x * h


class _Sum(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h


class _Concat(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.joint = JointLinear([width, width], width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.relu(self.joint(x, h))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross, self.deep = (
            nn.Sequential(MLP(width, [width]), linear(width, width, bias=False), nn.Softmax(1))
            for _ in range(2)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cross(x) * x + self.deep(h) * h


class _NoGates(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _FieldGates(nn.Module):
    def __init__(self, num_fields: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.ones(2, num_fields))
        """For the crosses and for the network: [streams, fields]."""
        self._dim = dim
        self._temperature = temperature

    def forward(self, x: Float[Tensor, "batch width"]) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.gates / self._temperature, dim=1)
        cross, deep = weights.repeat_interleave(self._dim, dim=1).unbind(0)  # each [fields * dim]
        return x * cross, x * deep


class _Residual(nn.Module):
    def __init__(self, cross: RankOneCross) -> None:
        super().__init__()
        self.cross = cross

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return self.cross(x0, x) + x


class _Regulation(nn.Module):
    """What both streams of a layer read."""

    def __init__(self, config: EDCNConfig, num_fields: int) -> None:
        super().__init__()
        self.gates = config.regulation.build(num_fields, config.embedding_dim)
        width = num_fields * config.embedding_dim
        self.cross_norm, self.deep_norm = (
            nn.BatchNorm1d(width) if config.batch_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, shared: Float[Tensor, "batch width"]) -> tuple[Tensor, Tensor]:
        cross, deep = self.gates(shared)
        return self.cross_norm(cross), self.deep_norm(deep)


class EDCN(nn.Module):
    """Crosses and network with a bridge after every layer; tasks share all but the head."""

    def __init__(self, config: EDCNConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        num_fields, width = self.embedding.num_fields, self.embedding.width
        layers = range(config.num_layers)
        self.regulations = nn.ModuleList([_Regulation(config, num_fields) for _ in layers])
        crosses = [RankOneCross(width) for _ in layers]
        self.crosses = nn.ModuleList(
            [_Residual(cross) if config.cross_residual else cross for cross in crosses]
        )
        self.dense = nn.ModuleList(
            [
                MLP(width, [width], activation=config.activation, dropout=config.dropout)
                for _ in layers
            ]
        )
        self.bridges = nn.ModuleList([config.bridge.build(width) for _ in layers])
        self.head = JointLinear([width] * 3, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        shared = self.embedding(batch).flatten(1)  # [batch, fields * dim]
        x0: Tensor | None = None
        for regulate, cross, dense, bridge in zip(
            self.regulations, self.crosses, self.dense, self.bridges, strict=True
        ):
            x, h = regulate(shared)
            x0 = x if x0 is None else x0
            x, h = cross(x0, x), dense(h)
            shared = bridge(x, h)
        return self.head(x, h, shared)
