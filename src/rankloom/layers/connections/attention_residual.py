"""Attention residuals: a layer reads attention over earlier blocks, with no skip beside it.

Source: Attention Residuals, arXiv:2603.15031. A layer there is an attention or a network, so this
    connection stands around sublayers.
Equations: h_l = sum_n softmax_n(w_l . RMSNorm(B_n)) B_n over the input, the complete blocks' sums
    and the running block's sum; the output is the same over all blocks. Queries start at zero, so
    that weights start equal.
"""

from collections.abc import Sequence

from torch import nn

from rankloom.layers.connections.block_path import BlockPath
from rankloom.layers.connections.layers import Layer, Tokens, last_tokens


class AttentionResidual(nn.Module):
    """Layers that read attention over depth.

    The first layer attends to the input alone, which is that input; so layer l's output, once it is
    in a block, is what query l + 1 of the paper attends to, and the last one makes the output.

    Args:
        dim: width of a token.
        path: the blocks and the attention to them, with softmax.
    """

    def __init__(self, dim: int, path: BlockPath) -> None:
        super().__init__()
        self.out_dim = dim
        self.path = path

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> Tokens:
        """The stack's output."""
        state = self.path.start(x)
        for index, layer in enumerate(layers):
            update = layer(x).to(x.dtype)
            x, state = self.path(state, index, last_tokens(x, update), update)
        return x
