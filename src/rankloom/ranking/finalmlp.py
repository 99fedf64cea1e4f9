"""FinalMLP: two networks over differently gated features, fused bilinearly.

Source: Mao et al., AAAI 2023, arXiv:2304.00902, section 3.
Equations: x = MLP_1(2 sigmoid(Gate_1(c_1)) * e), y = MLP_2(2 sigmoid(Gate_2(c_2)) * e),
    logits = b + w_x x + w_y y + sum_h x_h^T W_h y_h
    with e the embeddings side by side and c_i the embeddings of the chosen context fields.
Differs from the paper: nothing known.
The paper does not say: where the contexts' embeddings come from. Here, as in its published code,
    they have tables of their own. A context without fields is a learned vector that starts at zero;
    its gate's hidden layers then start with zero outputs, and only the last layer's bias moves.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.fusion import BilinearFusion
from rankloom.layers.gating import FeatureGate
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class Stream(Network):
    """One of the two networks; the last hidden layer is its output."""

    hidden: tuple[int, ...] = Field((400, 400, 400), min_length=1)
    """Widths of the hidden layers; the last is the stream's output."""


class NoGates(Config):
    """Both streams read the embeddings as they are (the paper's DualMLP)."""

    kind: Literal["none"] = "none"

    def build(self, schema: Schema, dim: int, width: int) -> nn.Module:
        """The gates over `width` units."""
        return _NoGates()


class ContextGates(Config):
    """Each stream reads the embeddings through gates of its own."""

    kind: Literal["context"] = "context"
    hidden: tuple[int, ...] = (800,)
    """Widths of the hidden layers of both gates."""
    first_context: tuple[str, ...] = ()
    """Fields that the first stream's gates read; empty: a learned vector."""
    second_context: tuple[str, ...] = ()
    """Fields that the second stream's gates read; empty: a learned vector."""

    def build(self, schema: Schema, dim: int, width: int) -> nn.Module:
        """The gates over `width` units."""
        contexts = [_context(schema, dim, names) for names in self._contexts()]
        gates = [
            FeatureGate(dim * max(1, len(names)), self.hidden, width) for names in self._contexts()
        ]
        return _ContextGates(contexts, gates)

    def _contexts(self) -> tuple[tuple[str, ...], ...]:
        return self.first_context, self.second_context


Gates = Annotated[NoGates | ContextGates, Field(discriminator="kind")]


class FinalMLPConfig(Config):
    """Sizes of the streams, their gates and their fusion."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    first: Stream = Stream()
    """The first stream."""
    second: Stream = Stream()
    """The second stream."""
    gates: Gates = ContextGates()
    """Feature selection in front of the streams: none or context."""
    num_heads: int = Field(1, gt=0)
    """Heads of the fusion; divides both streams' output widths."""


class _NoGates(nn.Module):
    def forward(self, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _ContextGates(nn.Module):
    def __init__(self, contexts: list[nn.Module], gates: list[FeatureGate]) -> None:
        super().__init__()
        self.contexts = nn.ModuleList(contexts)
        self.gates = nn.ModuleList(gates)

    def forward(self, batch: Batch, x: Float[Tensor, "batch width"]) -> tuple[Tensor, Tensor]:
        first, second = (
            gate(context(batch), x) for gate, context in zip(self.gates, self.contexts, strict=True)
        )
        return first, second


class _FieldContext(nn.Module):
    """Embeddings of the chosen fields, side by side."""

    def __init__(self, schema: Schema, dim: int, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, dim, fields=fields)

    def forward(self, batch: Batch) -> Float[Tensor, "batch context"]:
        return self.embedding(batch).flatten(1)


class _LearnedContext(nn.Module):
    """One vector for every row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(1, dim))

    def forward(self, batch: Batch) -> Float[Tensor, "1 context"]:
        return self.vector


def _context(schema: Schema, dim: int, fields: tuple[str, ...]) -> nn.Module:
    return _FieldContext(schema, dim, fields) if fields else _LearnedContext(dim)


class FinalMLP(nn.Module):
    """Two gated streams and their bilinear fusion; tasks share everything but the fusion."""

    def __init__(self, config: FinalMLPConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        width = self.embedding.width
        self.gates = config.gates.build(schema, config.embedding_dim, width)
        self.first = config.first.build_network(width)
        self.second = config.second.build_network(width)
        self.fusion = BilinearFusion(
            self.first.out_features, self.second.out_features, config.num_heads, schema.num_tasks
        )

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x, y = self.gates(batch, self.embedding(batch).flatten(1))
        return self.fusion(self.first(x), self.second(y))
