"""GDCN: cross layers whose every unit passes a learned gate, beside or below a network.

Source: Wang et al., CIKM 2023, arXiv:2311.04635, section 3.
Equations: x[l+1] = x[0] * (W[l] x[l] + b[l]) * sigmoid(G[l] x[l]) + x[l];
    parallel (GDCN-P): logits = W [x[L]; MLP(x[0])] + c, stacked (GDCN-S): logits = W MLP(x[L]) + c
    with x[0] the embeddings side by side.
Differs from the paper: all fields have embeddings of one width. The paper's field-level dimension
    optimisation, which shrinks each field's embedding after a first training, is left out.
The paper does not say: how the biases start. Here at zero.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.mlp import MLP, JointLinear, linear
from rankloom.layers.precision import in_product_dtype
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class Parallel(Config):
    """GDCN-P: the network reads the embeddings; the head reads crosses and network."""

    kind: Literal["parallel"] = "parallel"

    def build(self, cross: nn.Module, deep: MLP, width: int) -> tuple[list[nn.Module], list[int]]:
        """The streams over `width` units, and the widths of their outputs."""
        return [cross, deep], [width, deep.out_features]


class Stacked(Config):
    """GDCN-S: the network reads what the crosses give."""

    kind: Literal["stacked"] = "stacked"

    def build(self, cross: nn.Module, deep: MLP, width: int) -> tuple[list[nn.Module], list[int]]:
        """The streams over `width` units, and the widths of their outputs."""
        return [nn.Sequential(cross, deep)], [deep.out_features]


Structure = Annotated[Parallel | Stacked, Field(discriminator="kind")]


class GDCNConfig(Network):
    """Sizes of the crosses and of the network."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    num_crosses: int = Field(3, ge=1)
    """Cross layers; each raises the interaction order by one."""
    structure: Structure = Parallel()
    """Where the network stands: parallel or stacked."""


class _GatedCross(nn.Module):
    """x0 * (W x + b) * sigmoid(G x) + x, both products as one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        starts = [linear(width, width, bias=False).weight.detach() for _ in range(2)]
        self.weight = nn.Parameter(torch.cat(starts))
        """W above G: [2 * width, width]."""
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self, x0: Float[Tensor, "batch width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        """The next layer's input, from the first and this layer's."""
        bias = functional.pad(self.bias, (0, self.bias.shape[0]))  # none for the gate
        joint = functional.linear(x, self.weight, bias)  # [batch, 2 * width]
        crossed, gate = joint.chunk(2, dim=1)
        return torch.addcmul(x, x0 * crossed, torch.sigmoid(gate))


class _GatedCrossNetwork(nn.Module):
    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_GatedCross(width) for _ in range(num_layers)])

    def forward(self, x0: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        x = x0 = in_product_dtype(x0)
        for layer in self.layers:
            x = layer(x0, x)
        return x


class GDCN(nn.Module):
    """Gated crosses and network over all fields; tasks share everything but the head."""

    def __init__(self, config: GDCNConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        width = self.embedding.width
        cross = _GatedCrossNetwork(width, config.num_crosses)
        streams, widths = config.structure.build(cross, config.build_network(width), width)
        self.streams = nn.ModuleList(streams)
        self.head = JointLinear(widths, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x0 = self.embedding(batch).flatten(1)  # [batch, fields * dim]
        return self.head(*(stream(x0) for stream in self.streams))
