"""FinalNet: layers whose outputs multiply, in one block or in two that teach each other.

Source: Zhu et al., SIGIR 2023, doi:10.1145/3539618.3591988 (FINAL). The paper's layer is `sum`;
    `concat`, the gate's form and its starting values are those of the authors' code in FuxiCTR.
Equations: (a, b) = W x + c cut in two;  layer(x) = [a; a * b]  (concat), or
    h[1] = W[1] x + c[1],  h[i] = h[i-1] * act(W[i] x + c[i]),  layer(x) = sum_i h[i]  (sum)
    block(x) = layers, each followed by norm, activation and dropout
    field gate: E' = [E; E * (G E + g)], G [fields, fields] starting at 0 and g at 1
    one block: logits = w block(e);  two: logits = (w1 block1(e') + w2 block2(e)) / 2
    loss = L(y) + BCE(y1, stop(y)) + BCE(y2, stop(y)), the last two with two blocks only
    where y, y1, y2 are the probabilities of the mean and of each block.
Differs from the paper: `concat`, the default, is the authors' code's, not the paper's.
The paper does not say: what the blocks' losses do with missing labels and weights; here they are
    masked and weighted as the labels' loss is.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.dropout import Dropout
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.losses import ranking_loss, task_losses
from rankloom.layers.mlp import ActivationName, activation_builder, linear
from rankloom.protocols import Loss
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class ConcatLayer(Config):
    """Half of a layer's outputs are linear, the other half their products with as many others."""

    kind: Literal["concat"] = "concat"

    def build(self, in_features: int, out_features: int) -> nn.Module:
        """One layer.

        Raises:
            ValueError: `out_features` is odd.
        """
        return _ConcatLayer(in_features, out_features)


class SumLayer(Config):
    """A layer's outputs are sums of products of one, two ... `num_factors` linear maps."""

    kind: Literal["sum"] = "sum"
    num_factors: int = Field(2, ge=2)
    """Linear maps of a layer; its weights grow with them."""
    activation: ActivationName = "none"
    """Activation of every factor but the first."""

    def build(self, in_features: int, out_features: int) -> nn.Module:
        """One layer."""
        return _SumLayer(in_features, out_features, self.num_factors, self.activation)


Layer = Annotated[ConcatLayer | SumLayer, Field(discriminator="kind")]


class Block(Network):
    """A stack of factorized interaction layers; each doubles the order of interaction."""

    hidden: tuple[int, ...] = Field((400, 400), min_length=1)
    """Widths of the layers; even where the layers are concat."""
    activation: ActivationName = "none"
    """Activation after every layer and its norm."""
    batch_norm: bool = True
    """Batch-normalise every layer's outputs."""
    field_gate: bool = False
    """Lay the embeddings, weighed by learned gates over fields, beside the embeddings."""

    def build(self, layer: Layer, fields: int, dim: int, num_tasks: int) -> nn.Module:
        """The block over embeddings [batch, fields, dim], its logits on top."""
        parts: list[nn.Module] = [_FieldGate(fields)] if self.field_gate else []
        parts.append(nn.Flatten())
        width = fields * dim * (2 if self.field_gate else 1)
        activation = activation_builder(self.activation)
        for next_width in self.hidden:
            parts.append(layer.build(width, next_width))
            if self.batch_norm:
                parts.append(nn.BatchNorm1d(next_width))
            parts.append(activation(next_width))
            if self.dropout > 0:
                parts.append(Dropout(self.dropout))
            width = next_width
        return nn.Sequential(*parts, linear(width, num_tasks))


class OneBlock(Config):
    """A single block (1B), trained on the labels alone."""

    kind: Literal["one"] = "one"
    first: Block = Block()
    """The block."""

    def build(self, layer: Layer, fields: int, dim: int, num_tasks: int) -> list[nn.Module]:
        """The blocks in order, as `Block.build` makes them."""
        return [self.first.build(layer, fields, dim, num_tasks)]


class TwoBlocks(Config):
    """Two blocks (2B), each of which also learns from the mean of both."""

    kind: Literal["two"] = "two"
    first: Block = Block()
    """The first block."""
    second: Block = Block()
    """The second block."""

    def build(self, layer: Layer, fields: int, dim: int, num_tasks: int) -> list[nn.Module]:
        """The blocks in order, as `Block.build` makes them."""
        blocks = (self.first, self.second)
        return [block.build(layer, fields, dim, num_tasks) for block in blocks]


Blocks = Annotated[OneBlock | TwoBlocks, Field(discriminator="kind")]


class FinalNetConfig(Config):
    """Sizes of the embeddings and the blocks."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    layer: Layer = ConcatLayer()  # DIFF: the authors' code's choice
    """What a layer of the blocks is: concat or sum."""
    blocks: Blocks = TwoBlocks()
    """The blocks: one or two."""


class _ConcatLayer(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(
                "the widths of concat layers must be even, one half for the products; "
                f"got hidden width {out_features}"
            )
        self.linear = linear(in_features, out_features)

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        first, second = self.linear(x).chunk(2, dim=1)  # each [batch, out_features / 2]
        return torch.cat([first, first * second], dim=1)


class _SumLayer(nn.Module):
    def __init__(
        self, in_features: int, out_features: int, num_factors: int, activation: ActivationName
    ) -> None:
        super().__init__()
        self._num_others = num_factors - 1
        self.first = linear(in_features, out_features)
        # One product for all that an activation follows.
        self.factors = linear(in_features, self._num_others * out_features)
        self.activation = activation_builder(activation)(self._num_others * out_features)

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        total = product = self.first(x)
        for factor in self.activation(self.factors(x)).chunk(self._num_others, dim=1):
            product = product * factor
            total = total + product
        return total


class _FieldGate(nn.Module):
    """The fields, and the fields weighed by gates that read the same dimension of all fields."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.gate = nn.Linear(fields, fields)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)

    def forward(
        self, vectors: Float[Tensor, "batch fields dim"]
    ) -> Float[Tensor, "batch twice_fields dim"]:
        gates = self.gate(vectors.mT).mT  # [batch, fields, dim]
        return torch.cat([vectors, vectors * gates], dim=1)


class FinalNet(nn.Module):
    """One or two blocks over the same embeddings; tasks share everything but the last layers."""

    def __init__(self, config: FinalNetConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        fields, dim = self.embedding.num_fields, self.embedding.dim
        blocks = config.blocks.build(config.layer, fields, dim, schema.num_tasks)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task: the mean of the blocks'."""
        return _mean(self._logits(batch))

    def loss(self, batch: Batch) -> Loss:
        """The labels' loss of the mean, and with two blocks what each misses of the mean's scores.

        Parts: `labels`, and with two blocks `block_0` and `block_1`, each summed over tasks.

        Raises:
            ValueError: the batch has no labels.
        """
        logits = self._logits(batch)
        mean = _mean(logits)
        labels = ranking_loss(mean, batch)
        if len(logits) == 1:
            return labels
        targets = torch.sigmoid(mean.detach().float())
        taught = [task_losses(one, batch, targets).sum() for one in logits]
        parts = {f"block_{number}": loss for number, loss in enumerate(taught)}
        total = labels.total + torch.stack(taught).sum()
        return Loss(total, {"labels": labels.total, **labels.parts, **parts})

    def _logits(self, batch: Batch) -> list[Tensor]:
        """Every block's logits, each [batch, tasks]."""
        vectors = self.embedding(batch)  # [batch, fields, dim]
        return [block(vectors) for block in self.blocks]


def _mean(logits: list[Tensor]) -> Tensor:
    return torch.stack(logits).mean(0)
