"""DCN v3 (FCN): a cross network of exponential order beside one of linear order, and no network.

Source: Li et al., arXiv:2407.13349 (to version 6 as DCNv3, then as FCN), with the authors' code.
Equations, per layer of a tower, with H = W x of half x's width and b of x's width:
    deep (exponential):  x <- x  * ([H; M(H)] + b) + x
    shallow (linear):    x <- x0 * ([H; M(H)] + b) + x
    M(H) = H * relu(LayerNorm(H))  (self_mask), or g * H + h  (affine, the later code's)
    logits = (deep + shallow) / 2, each a linear map of its tower's last x
    x0 = [first halves of all embeddings; second halves], per head: `num_heads` cuts every
    embedding, towers are shared by the heads, logits are the mean over heads
    Tri-BCE: L + max(L_deep - L, 0) L_deep + max(L_shallow - L, 0) L_shallow
Differs from the paper: the weights max(...) of Tri-BCE are constants for the gradient. The authors'
    code differentiates through them, by which the gradient of L has the factor
    1 - L_deep - L_shallow while both weights are positive: below zero at the usual first losses.
    `embedding_dim` is the width of all heads; in the authors' code it is that of one.
    Batch norm takes each unit's statistics over rows and heads; the authors' code takes each
    head's over rows and units, and in `affine` norms both halves.
The paper does not say, or not that we know: what happens at odd widths. Here the first halves are
    one dimension wider, and M takes as many units of H as the second halves are wide. With several
    tasks, each has its own Tri-BCE, and the sum is the loss.
"""

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
from rankloom.layers.losses import task_losses
from rankloom.layers.mlp import linear
from rankloom.protocols import Loss
from rankloom.schema import Schema


class SelfMask(Config):
    """The second half keeps the units of H that stand above their row's average."""

    kind: Literal["self_mask"] = "self_mask"
    layer_norm: bool = True
    """Norm H before the mask's ReLU."""

    def build(self, width: int) -> nn.Module:
        """The map from `width` units to as many."""
        return _SelfMask(nn.LayerNorm(width) if self.layer_norm else nn.Identity())


class Affine(Config):
    """The second half is H, scaled and shifted unit by unit."""

    kind: Literal["affine"] = "affine"

    def build(self, width: int) -> nn.Module:
        """The map from `width` units to as many."""
        return _Affine(width)


SecondHalf = Annotated[SelfMask | Affine, Field(discriminator="kind")]


class Tower(Config):
    """One of the two cross networks."""

    num_layers: int = Field(4, ge=1)
    """Cross layers. Each doubles the order in the deep tower, adds one in the shallow tower."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of units dropped after every layer in training."""
    batch_norm: bool = False
    """Batch-normalise H."""
    second_half: SecondHalf = SelfMask()
    """What stands beside H: self_mask or affine."""

    def build_layers(self, first_width: int, second_width: int) -> nn.ModuleList:
        """[H; M(H)] + b of every layer, over x's two halves."""
        return nn.ModuleList(
            [_CrossFactor(self, first_width, second_width) for _ in range(self.num_layers)]
        )


class DCNv3Config(Config):
    """Sizes of the embeddings and the towers."""

    embedding_dim: int = Field(16, ge=2)
    """Width of every field's embedding, all heads together."""
    num_heads: int = Field(1, gt=0)
    """Pieces of every embedding, which share the towers; divides `embedding_dim`."""
    deep: Tower = Tower()
    """The exponential tower."""
    shallow: Tower = Tower()
    """The linear tower."""


class _SelfMask(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return x * functional.relu(self.norm(x))


class _Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return torch.addcmul(self.shift, self.scale, x)


class _CrossFactor(nn.Module):
    """[H; M(H)] + b, which a cross layer multiplies by its left factor."""

    def __init__(self, config: Tower, first_width: int, second_width: int) -> None:
        super().__init__()
        width = first_width + second_width
        self._second_width = second_width
        self.linear = linear(width, first_width, bias=False)
        # DIFF: each unit's statistics
        self.norm = nn.BatchNorm1d(first_width) if config.batch_norm else nn.Identity()
        self.second_half = config.second_half.build(second_width)
        self.bias = nn.Parameter(torch.rand(width))  # as the authors' code starts it

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        half = self.norm(self.linear(x))  # [rows, first_width]
        other = self.second_half(half[:, : self._second_width])
        return torch.cat([half, other], dim=1) + self.bias


class _ExponentialCross(nn.Module):
    """Cross layers whose left factor is their own input."""

    def __init__(self, layers: nn.ModuleList, dropout: float) -> None:
        super().__init__()
        self.layers = layers
        self.dropout = Dropout(dropout)

    def forward(self, x0: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        x = x0
        for layer in self.layers:
            x = self.dropout(torch.addcmul(x, x, layer(x)))
        return x


class _LinearCross(nn.Module):
    """Cross layers whose left factor is the first layer's input."""

    def __init__(self, layers: nn.ModuleList, dropout: float) -> None:
        super().__init__()
        self.layers = layers
        self.dropout = Dropout(dropout)

    def forward(self, x0: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        x = x0
        for layer in self.layers:
            x = self.dropout(torch.addcmul(x, x0, layer(x)))
        return x


class DCNv3(nn.Module):
    """Two towers of crosses over the same embeddings; tasks share all but the last layers.

    Raises:
        ValueError: `num_heads` does not cut the embeddings into pieces of two or more dimensions.
    """

    def __init__(self, config: DCNv3Config, schema: Schema) -> None:
        super().__init__()
        dim, heads = config.embedding_dim, config.num_heads
        if dim % heads or dim // heads < 2:
            raise ValueError(
                "num_heads must divide embedding_dim into pieces of at least 2; "
                f"got embedding_dim={dim}, num_heads={heads}"
            )
        self.embedding = FieldEmbedding(schema, dim)
        self._heads = (heads, dim // heads)  # DIFF: the heads share the width
        second = dim // heads // 2
        self._halves = [dim // heads - second, second]
        halves = [self.embedding.num_fields * half for half in self._halves]
        width, tasks = sum(halves), schema.num_tasks
        deep = _ExponentialCross(config.deep.build_layers(*halves), config.deep.dropout)
        shallow = _LinearCross(config.shallow.build_layers(*halves), config.shallow.dropout)
        self.deep = nn.Sequential(deep, linear(width, tasks))
        self.shallow = nn.Sequential(shallow, linear(width, tasks))

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task: the mean of the towers'."""
        deep, shallow = self._logits(batch)
        return 0.5 * (deep + shallow)

    def loss(self, batch: Batch) -> Loss:
        """Tri-BCE: the labels' loss of the mean, and of each tower as far as it lies above that.

        Parts: `mean`, `deep` and `shallow`, the losses before weighing, each summed over tasks.

        Raises:
            ValueError: the batch has no labels.
        """
        deep, shallow = self._logits(batch)
        mean_loss = task_losses(0.5 * (deep + shallow), batch)  # [tasks]
        deep_loss = task_losses(deep, batch)
        shallow_loss = task_losses(shallow, batch)
        total = mean_loss
        for tower_loss in (deep_loss, shallow_loss):
            # DIFF: constant weights
            weight = (tower_loss - mean_loss).detach().clamp(min=0)
            total = total + weight * tower_loss
        losses = {"mean": mean_loss, "deep": deep_loss, "shallow": shallow_loss}
        return Loss(total.sum(), {name: loss.sum() for name, loss in losses.items()})

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The towers' logits, each [batch, tasks]."""
        heads, _ = self._heads
        pieces = torch.unflatten(self.embedding(batch), 2, self._heads)
        pieces = pieces.transpose(1, 2)  # [batch, heads, fields, piece]
        first, second = torch.split(pieces, self._halves, dim=3)
        x0 = torch.cat([first.flatten(2), second.flatten(2)], dim=2)  # [batch, heads, width]
        x0 = x0.flatten(0, 1)  # [batch * heads, width]: heads go through the towers as rows
        deep, shallow = (
            torch.unflatten(tower(x0), 0, (-1, heads)).mean(1)  # [batch, tasks]
            for tower in (self.deep, self.shallow)
        )
        return deep, shallow
