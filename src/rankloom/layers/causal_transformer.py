"""A causal pre-norm Transformer that trains on all positions and decodes with beams.

Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762; the norm before each sublayer as in GPT-2.
Equations: z = x + Dropout(W_O Attention(Norm(x))), x' = z + Dropout(Network(Norm(z))); a last norm.

Padding stands at the end of a row, where no real position sees it: the causal order is all the mask
that training needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rankloom.layers.attention import attention_of_heads, split_heads
from rankloom.layers.beam_attention import beam_attention, follow_parents
from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import linear

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of some positions, heads apart."""


@dataclass(frozen=True)
class BeamCache:
    """Keys and values of contexts, and of what the beams of each have written since."""

    context: tuple[KeysValues, ...]
    """Of every layer, [batch, heads, seq, head_dim] each; without an axis of beams."""
    mask: Bool[Tensor, "batch seq"]
    """True at the contexts' real positions."""
    own: Float[Tensor, "steps batch beams layers 2 heads head_dim"]
    """Keys and values of the beams' own steps, all layers, so that one gather re-orders them."""

    @property
    def num_steps(self) -> int:
        """Steps taken since the context."""
        return self.own.shape[0]


class CausalLayer(nn.Module):
    """One layer.

    Args:
        dim: width of a position.
        num_heads: heads; divides `dim`.
        network: what follows attention, `[..., dim]` to `[..., dim]`.
        build_norm: makes a norm of the given width.
        dropout: share of units dropped of what each sublayer adds.
        attention_dropout: share of attention weights dropped in training.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        network: nn.Module,
        build_norm: Callable[[int], nn.Module],
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.attention_norm = build_norm(dim)
        self.project = linear(dim, 3 * dim, bias=False)
        for weight in self.project.weight.detach().chunk(3):
            nn.init.xavier_normal_(weight)  # each as the matrix of its own that it is
        self.out = linear(dim, dim, bias=False)
        self.network_norm = build_norm(dim)
        self.network = network
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch seq dim"]
    ) -> tuple[Float[Tensor, "batch seq dim"], KeysValues]:
        """All positions at once, and their keys and values."""
        q, k, v = self._heads(x)
        dropout = self.attention_dropout if self.training else 0.0
        attended = attention_of_heads(q, k, v, dropout=dropout, causal=True)
        return self._after_attention(x, attended), (k, v)

    def step(
        self,
        x: Float[Tensor, "batch beams dim"],
        context: KeysValues,
        mask: Bool[Tensor, "batch seq"],
        own: Float[Tensor, "steps batch beams 2 heads head_dim"],
    ) -> Float[Tensor, "batch beams dim"]:
        """One new position of every beam, whose keys and values become the last of `own`."""
        q, k, v = self._heads(x)  # [batch, heads, beams, head_dim]
        own[-1, :, :, 0], own[-1, :, :, 1] = k.transpose(1, 2), v.transpose(1, 2)
        attended = beam_attention(q, *context, mask, own[:, :, :, 0], own[:, :, :, 1])
        return self._after_attention(x, attended)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.project(self.attention_norm(x)).chunk(3, dim=-1)
        split = self.num_heads
        return split_heads(q, split), split_heads(k, split), split_heads(v, split)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.network(self.network_norm(x)))


class CausalTransformer(nn.Module):
    """Causal layers and a last norm.

    Args:
        layers: the layers.
        norm: the last norm.
    """

    def __init__(self, layers: list[CausalLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """What is known after each position."""
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm(x)

    def encode(
        self, x: Float[Tensor, "batch seq dim"], mask: Bool[Tensor, "batch seq"]
    ) -> tuple[Float[Tensor, "batch seq dim"], BeamCache]:
        """The same, and the cache that `step` continues from.

        Args:
            x: positions, padding at the end.
            mask: True at real ones, of which every row has one.
        """
        context: list[KeysValues] = []
        for layer in self.layers:
            x, keys_values = layer(x)
            context.append(keys_values)
        keys = context[0][0]
        batch, heads, _, dim = keys.shape
        own = keys.new_empty(0, batch, 1, len(context), 2, heads, dim)
        return self.norm(x), BeamCache(tuple(context), mask, own)

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "batch beams dim"],
        cache: BeamCache,
        parents: Int[Tensor, "batch beams"],
    ) -> tuple[Float[Tensor, "batch beams dim"], BeamCache]:
        """What is known after one more position of every beam, and the cache with it; no gradients.

        Args:
            x: the new positions.
            cache: of the step before; it stays as it is.
            parents: beam of the step before that each new one continues.
        """
        own = follow_parents(cache.own, parents)
        for place, layer in enumerate(self.layers):
            step = cast(CausalLayer, layer).step
            x = step(x, cache.context[place], cache.mask, own[:, :, :, place])
        return self.norm(x), BeamCache(cache.context, cache.mask, own)
