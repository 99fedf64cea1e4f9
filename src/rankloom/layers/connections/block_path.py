"""The block path: summaries of earlier layers' outputs, and attention of every layer to them.

Sources: Attention Residuals, arXiv:2603.15031 (blocks, their sums, the running one among them);
    DeRes, arXiv:2606.07980 (the path beside the identity).

Layers are cut into blocks of equal size, the last one shorter if need be. Block 0 is the stack's
input. A complete block is summarised and normalised once; only the running one changes with every
layer.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.connections.depth_attention import (
    Block,
    DepthActivation,
    DepthWeights,
    Queries,
    weighted_sum,
)
from rankloom.layers.connections.layers import Tokens, last_tokens

Compression = Literal["sum", "mean", "last", "linear"]
"""What summarises a block's outputs; `linear` is a learned map of their sum."""

ValueScale = Literal["plain", "rms", "count"]
"""Values as they are, normalised as keys are, or divided by the number of blocks."""


class PathState(NamedTuple):
    """What the path knows below a layer."""

    blocks: list[Block]
    """Complete blocks, block 0 first."""
    running: Tokens | None
    """What the running block has gathered so far; None: it is empty."""


class BlockPath(nn.Module):
    """Attention over blocks of earlier outputs.

    Args:
        queries: scores blocks for layers.
        dim: width of an output.
        num_layers: layers.
        block_size: layers of a block.
        compression: what summarises a block.
        running_block: whether a layer also attends to the block it belongs to, as far as that is.
        activation: what turns scores into weights.
        value_scale: what values are multiplied with beside their weights.

    Raises:
        ValueError: `block_size` is below 1.
    """

    def __init__(
        self,
        queries: Queries,
        dim: int,
        num_layers: int,
        *,
        block_size: int,
        compression: Compression = "sum",
        running_block: bool = True,
        activation: DepthActivation = "silu",
        value_scale: ValueScale = "plain",
    ) -> None:
        super().__init__()
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1; got {block_size}")
        self.queries = queries
        self.num_layers = num_layers
        self.block_size = block_size
        self.running_block = running_block
        self.weights = nn.ModuleList([DepthWeights(activation) for _ in range(num_layers)])
        self.gather = _latest if compression == "last" else _sum
        self.summarise: nn.Module = _Mean() if compression == "mean" else _AsGathered()
        if compression == "linear":
            self.summarise = _Mapped(dim)
        self.scale = _SCALES[value_scale]

    def start(self, value: Tokens) -> PathState:
        """The state below the first layer; `value` is block 0."""
        return PathState([self.queries.block(value, 0, self.num_layers)], None)

    def forward(
        self, state: PathState, layer: int, x: Tokens, output: Tokens
    ) -> tuple[Tokens, PathState]:
        """What the path gives above a layer.

        Args:
            state: the state below the layer.
            layer: which layer, from 0.
            x: what the layer read.
            output: what it gave.

        Returns:
            d, and the state above the layer.
        """
        blocks = [block.last(output.shape[1]) for block in state.blocks]
        running = self.gather(state.running, output)
        position = layer % self.block_size
        closes = position == self.block_size - 1
        # A block that closes is scored for all layers that will see it, a running one for this.
        first = layer if self.running_block else layer + 1
        num_layers = self.num_layers - first if closes else 1
        seen = blocks
        if closes or self.running_block:
            value = self.summarise(running, position + 1)
            latest = self.queries.block(value, first, num_layers)
            seen = [*blocks, latest] if self.running_block else blocks
            if closes:
                blocks = [*blocks, latest]
        state = PathState(blocks, None if closes else running)
        return self.attend(layer, x, seen), state

    def attend(self, layer: int, x: Tokens, blocks: list[Block]) -> Tokens:
        """The weighted sum of the blocks' values."""
        scores = self.queries(layer, x, blocks)  # [batch, tokens, depth_heads, blocks]
        weights = self.scale(self.weights[layer](scores), blocks)
        return weighted_sum(weights, [block.value for block in blocks])


class NoBlockPath(nn.Module):
    """In place of a path: nothing is kept, and nothing comes back."""

    def start(self, value: Tokens) -> PathState:
        """The empty state."""
        return PathState([], None)

    def forward(
        self, state: PathState, layer: int, x: Tokens, output: Tokens
    ) -> tuple[Tokens, PathState]:
        """Zeros that broadcast, and the empty state."""
        return output.new_zeros(()), state


class _AsGathered(nn.Module):
    def forward(self, running: Tokens, num_outputs: int) -> Tokens:
        return running


class _Mean(nn.Module):
    def forward(self, running: Tokens, num_outputs: int) -> Tokens:
        return running / num_outputs


class _Mapped(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, running: Tokens, num_outputs: int) -> Tokens:
        return functional.linear(running, self.weight)


def _sum(running: Tokens | None, output: Tokens) -> Tokens:
    return output if running is None else last_tokens(running, output) + output


def _latest(running: Tokens | None, output: Tokens) -> Tokens:
    return output


def _by_rms(weights: Tensor, blocks: list[Block]) -> Tensor:
    return weights * torch.stack([block.inverse_rms for block in blocks], dim=-1)


def _by_count(weights: Tensor, blocks: list[Block]) -> Tensor:
    return weights / len(blocks)


_SCALES: dict[ValueScale, Callable[[Tensor, list[Block]], Tensor]] = {
    "plain": lambda weights, blocks: weights,
    "rms": _by_rms,
    "count": _by_count,
}
