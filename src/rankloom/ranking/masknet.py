"""MaskNet: hidden layers multiplied, unit by unit, with masks that the row's embeddings give.

Source: Wang, She and Zhang, DLP-KDD 2021, arXiv:2102.07619, section 3.
Equations: e = embeddings side by side, n = LayerNorm of every field's embedding,
    mask_k(e) = V_k ReLU(U_k e + u_k) + v_k, with U_k wider than mask_k by the factor `reduction`,
    block_k(e, x) = ReLU(LayerNorm(W_k (mask_k(e) * x)));
    serial: x[0] = n, x[k+1] = block_k(e, x[k]), logits = W x[K] + b;
    parallel: logits = MLP([block_1(e, n); ...; block_K(e, n)])
Differs from the paper: activation and dropout can be set (the paper has ReLU and none), and
    `embedding_norm = false` takes n = e, as many of the field's tuned settings do.
The paper does not say: whether fields share the parameters of their LayerNorm. Here each field has
    its own.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.dropout import Dropout
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.mlp import MLP, ActivationName, activation_builder, linear
from rankloom.layers.precision import in_product_dtype
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class Serial(Config):
    """Blocks one after another, each masking what the last one gave."""

    kind: Literal["serial"] = "serial"
    hidden: tuple[int, ...] = Field((400, 400, 400), min_length=1)
    """Widths of the blocks' outputs."""
    activation: ActivationName = "relu"
    """Activation of the blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the blocks' outputs dropped in training."""

    def build(self, width: int, reduction: float, num_tasks: int) -> nn.Module:
        """The blocks over `width` units, and the head."""
        return _Serial(self, width, reduction, num_tasks)


class Parallel(Network):
    """Blocks side by side, each masking the embeddings, below a network.

    Activation and dropout are those of blocks and network, `batch_norm` is the network's alone.
    """

    kind: Literal["parallel"] = "parallel"
    num_blocks: int = Field(3, gt=0)
    """Blocks."""
    block_width: int = Field(64, gt=0)
    """Width of every block's output."""

    def build(self, width: int, reduction: float, num_tasks: int) -> nn.Module:
        """The blocks over `width` units, and the network above them."""
        return _Parallel(self, width, reduction, num_tasks)


Structure = Annotated[Serial | Parallel, Field(discriminator="kind")]


class MaskNetConfig(Config):
    """Sizes of the blocks, and how they are put together."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    structure: Structure = Parallel()
    """How the blocks stand: serial or parallel."""
    reduction: float = Field(2.0, gt=0)
    """Width of a mask's hidden layer over the width of what it masks."""
    embedding_norm: bool = True
    """Layer-normalise the embeddings that are masked; the masks read them as they are."""


class _FieldNorm(nn.Module):
    """LayerNorm of every field's embedding, with parameters of its own."""

    def __init__(self, num_fields: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_fields, dim))
        self.bias = nn.Parameter(torch.zeros(num_fields, dim))

    def forward(
        self, vectors: Float[Tensor, "batch fields dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        normal = functional.layer_norm(vectors, vectors.shape[2:])
        return torch.addcmul(self.bias, normal, self.weight)


class _MaskBlock(nn.Module):
    def __init__(
        self,
        settings: Serial | Parallel,
        reduction: float,
        width: int,
        in_features: int,
        out_features: int,
    ) -> None:
        super().__init__()
        between = max(1, int(in_features * reduction))
        self.mask = MLP(width, [between], out_features=in_features)
        self.hidden = linear(in_features, out_features, bias=False)
        self.norm = nn.LayerNorm(out_features)
        self.activation = activation_builder(settings.activation)(out_features)
        self.dropout = Dropout(settings.dropout) if settings.dropout > 0 else nn.Identity()

    def forward(
        self, embedded: Float[Tensor, "batch width"], x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        masked = self.mask(embedded) * x
        out = self.dropout(self.activation(self.norm(self.hidden(masked))))
        return in_product_dtype(out)  # the norm's output may be float32


class _Serial(nn.Module):
    def __init__(self, config: Serial, width: int, reduction: float, num_tasks: int) -> None:
        super().__init__()
        steps = pairwise([width, *config.hidden])
        blocks = [_MaskBlock(config, reduction, width, *step) for step in steps]
        self.blocks = nn.ModuleList(blocks)
        self.head = linear(config.hidden[-1], num_tasks)

    def forward(
        self, embedded: Float[Tensor, "batch width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch tasks"]:
        for block in self.blocks:
            x = block(embedded, x)
        return self.head(x)


class _Parallel(nn.Module):
    def __init__(self, config: Parallel, width: int, reduction: float, num_tasks: int) -> None:
        super().__init__()
        blocks = [
            _MaskBlock(config, reduction, width, width, config.block_width)
            for _ in range(config.num_blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        joined = config.num_blocks * config.block_width
        self.network = config.build_network(joined, out_features=num_tasks)

    def forward(
        self, embedded: Float[Tensor, "batch width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch tasks"]:
        outputs = [block(embedded, x) for block in self.blocks]
        return self.network(torch.cat(outputs, dim=1))  # from [batch, blocks * block_width]


class MaskNet(nn.Module):
    """Masked blocks over all fields; tasks share everything but the last linear layer."""

    def __init__(self, config: MaskNetConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.norm: nn.Module = nn.Identity()
        if config.embedding_norm:
            self.norm = _FieldNorm(self.embedding.num_fields, config.embedding_dim)
        width = self.embedding.width
        self.blocks = config.structure.build(width, config.reduction, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        vectors = self.embedding(batch)  # [batch, fields, dim]
        masked = self.norm(vectors).flatten(1)  # [batch, fields * dim]
        return self.blocks(in_product_dtype(vectors.flatten(1)), in_product_dtype(masked))
