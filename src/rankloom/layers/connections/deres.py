"""DeRes: an identity path and a block path through the same layers, joined in every layer.

Source: Cheng et al., 2026, arXiv:2606.07980. Its full text was not to be had: the two paths, the
    vector gate, SiLU in place of softmax and the channel split are known, how they are put together
    is reconstruction (docs/papers/deres.md tells which is which).
Equations, for layer l with update f_l:
    identity path  r_l = r_(l-1) + f_l
    block path     d_l = sum_b SiLU(w_l . RMSNorm(B_b)) B_b,  B_0 the stack's input
    together       x_l = g_l * r_l + (1 - g_l) * d_l

Two readings are built. `HalfDeRes` splits tokens by channel: one half of every output goes to the
identity path, which nothing ever scales, the other to the blocks; x_l is half as wide as a token,
and a linear map lifts it to the next layer's input. `FullDeRes` has no split and takes any stack as
it is; its identity path starts from x_(l-1).
"""

from collections.abc import Sequence

from torch import nn

from rankloom.layers.connections.block_path import BlockPath, NoBlockPath
from rankloom.layers.connections.layers import Layer, Tokens, last_tokens


class FullDeRes(nn.Module):
    """DeRes over whole tokens: a plug-in for any stack.

    Args:
        dim: width of a token.
        path: the block path, over `dim`.
        fusions: for every layer, what joins (r, d).
        skips: for every layer, the identity path's own map (`nn.Identity` for the paper's).
    """

    def __init__(
        self,
        dim: int,
        path: BlockPath | NoBlockPath,
        fusions: Sequence[nn.Module],
        skips: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.out_dim = dim
        self.path = path
        self.fusions = nn.ModuleList(fusions)
        self.skips = nn.ModuleList(skips)

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> Tokens:
        """The stack's output [batch, tokens, dim]."""
        state = self.path.start(x)
        parts = zip(layers, self.skips, self.fusions, strict=True)
        for index, (layer, skip, fuse) in enumerate(parts):
            update = layer(x).to(x.dtype)
            x = last_tokens(x, update)
            d, state = self.path(state, index, x, update)
            x = fuse(skip(x) + update, d)
        return x


class HalfDeRes(nn.Module):
    """DeRes with the channel split: half of a token for either path.

    Args:
        dim: width of a token; even.
        path: the block path, over `dim / 2`.
        fusions: for every layer, what joins (r, d).
        skips: for every layer, the identity path's own map (`nn.Identity` for the paper's).
        chained: whether the identity path goes on from x_l instead of r_l.

    Raises:
        ValueError: `dim` is odd.
    """

    def __init__(
        self,
        dim: int,
        path: BlockPath | NoBlockPath,
        fusions: Sequence[nn.Module],
        skips: Sequence[nn.Module],
        *,
        chained: bool = False,
    ) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"DeRes splits tokens into halves, so dim must be even; got {dim}")
        self.out_dim = dim // 2
        self.path = path
        self.fusions = nn.ModuleList(fusions)
        self.skips = nn.ModuleList(skips)
        self.chained = chained
        # What a layer reads; the first one reads the stack's input as it is.
        lifts = [nn.Linear(dim // 2, dim, bias=False) for _ in range(len(skips) - 1)]
        for lift in lifts:
            nn.init.xavier_normal_(lift.weight)
        self.lifts = nn.ModuleList([nn.Identity(), *lifts])

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> Tokens:
        """The stack's output [batch, tokens, dim / 2]."""
        r, v = x.chunk(2, dim=-1)  # each [batch, tokens, dim / 2]
        state = self.path.start(v)
        parts = zip(layers, self.lifts, self.skips, self.fusions, strict=True)
        for index, (layer, lift, skip, fuse) in enumerate(parts):
            x = lift(x)  # [batch, tokens, dim]
            update = layer(x).to(r.dtype)
            to_r, to_v = update.chunk(2, dim=-1)
            r = skip(last_tokens(r, update)) + to_r
            d, state = self.path(state, index, last_tokens(x, update), to_v)
            x = fuse(r, d)  # [batch, tokens, dim / 2]
            if self.chained:
                r = x
        return x
