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

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.interaction import CrossNetwork, LowRankCrossNetwork
from rankloom.layers.mlp import MLP, JointLinear
from rankloom.ranking.network import Network
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


Cross = Annotated[FullCross | LowRankMixture, Field(discriminator="kind")]


class CrossnetOnly(Config):
    """The cross network alone; the deep part's settings have no effect."""

    kind: Literal["crossnet_only"] = "crossnet_only"

    def build(self, config: "DCNv2Config", width: int) -> tuple[nn.Module, tuple[int, ...]]:
        """The structure over `width` units, and the widths of its outputs."""
        return _CrossnetOnly(config.build_cross(width)), (width,)


class Stacked(Config):
    """The network reads what the crosses give."""

    kind: Literal["stacked"] = "stacked"

    def build(self, config: "DCNv2Config", width: int) -> tuple[nn.Module, tuple[int, ...]]:
        """The structure over `width` units, and the widths of its outputs."""
        deep = config.build_network(width)
        return _Stacked(config.build_cross(width), deep), (deep.out_features,)


class Parallel(Config):
    """The network reads the embeddings; the head reads both."""

    kind: Literal["parallel"] = "parallel"

    def build(self, config: "DCNv2Config", width: int) -> tuple[nn.Module, tuple[int, ...]]:
        """The structure over `width` units, and the widths of its outputs."""
        cross, deep = config.build_cross(width), config.build_network(width)
        return _Parallel(cross, deep), (width, deep.out_features)


class StackedParallel(Config):
    """One network above the crosses and one beside them; the head reads both networks."""

    kind: Literal["stacked_parallel"] = "stacked_parallel"
    parallel_hidden: tuple[int, ...] = (400, 400, 400)
    """Widths of the hidden layers of the network beside the crosses."""

    def build(self, config: "DCNv2Config", width: int) -> tuple[nn.Module, tuple[int, ...]]:
        """The structure over `width` units, and the widths of its outputs."""
        deep = config.build_network(width)
        beside = config.build_network(width, hidden=self.parallel_hidden)
        widths = (deep.out_features, beside.out_features)
        return _StackedParallel(config.build_cross(width), deep, beside), widths


Structure = Annotated[
    CrossnetOnly | Stacked | Parallel | StackedParallel, Field(discriminator="kind")
]


class DCNv2Config(Network):
    """Sizes of the crosses and of the network (in stacked_parallel: of the one above)."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    num_crosses: int = Field(3, ge=1)
    """Cross layers; each raises the interaction order by one."""
    cross: Cross = FullCross()
    """What a cross layer is: full or low_rank."""
    structure: Structure = Parallel()
    """Where the network stands: crossnet_only, stacked, parallel or stacked_parallel."""

    def build_cross(self, width: int) -> nn.Module:
        """The cross network over `width` units."""
        return self.cross.build(width, self.num_crosses)


class _CrossnetOnly(nn.Module):
    def __init__(self, cross: nn.Module) -> None:
        super().__init__()
        self.cross = cross

    def forward(self, x0: Float[Tensor, "batch width"]) -> tuple[Tensor, ...]:
        return (self.cross(x0),)


class _Stacked(nn.Module):
    def __init__(self, cross: nn.Module, deep: MLP) -> None:
        super().__init__()
        self.cross = cross
        self.deep = deep

    def forward(self, x0: Float[Tensor, "batch width"]) -> tuple[Tensor, ...]:
        return (self.deep(self.cross(x0)),)


class _Parallel(nn.Module):
    def __init__(self, cross: nn.Module, deep: MLP) -> None:
        super().__init__()
        self.cross = cross
        self.deep = deep

    def forward(self, x0: Float[Tensor, "batch width"]) -> tuple[Tensor, ...]:
        return self.cross(x0), self.deep(x0)


class _StackedParallel(nn.Module):
    def __init__(self, cross: nn.Module, deep: MLP, beside: MLP) -> None:
        super().__init__()
        self.cross = cross
        self.deep = deep
        self.beside = beside

    def forward(self, x0: Float[Tensor, "batch width"]) -> tuple[Tensor, ...]:
        return self.deep(self.cross(x0)), self.beside(x0)


class DCNv2(nn.Module):
    """Crosses and network over all fields; tasks share everything but the head."""

    def __init__(self, config: DCNv2Config, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.structure, widths = config.structure.build(config, self.embedding.width)
        self.head = JointLinear(widths, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x0 = self.embedding(batch).flatten(1)  # [batch, fields * dim]
        return self.head(*self.structure(x0))
