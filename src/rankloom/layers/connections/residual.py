"""Connections that know the last layer's output only.

Sources: He et al., ECCV 2016, arXiv:1603.05027 (identity); Vaswani et al., NeurIPS 2017,
    arXiv:1706.03762 (normalised after the addition).
Equations, with f the layer's update:
    identity     x' = x + f(x)
    learnable    x' = W x + f(x), W a scalar, a vector or a matrix
    post-norm    x' = Norm(x + f(x))
    Siamese      o = f(x + Norm(y)), x' = Norm(x + o), y' = y + o; the output is x + Norm(y)
"""

from collections.abc import Sequence

from torch import nn

from rankloom.layers.connections.layers import LastTokens, Layer, Tokens, last_tokens


class Identity(nn.Module):
    """Every layer adds its update to what it read."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        for layer in layers:
            update = layer(x)
            x = last_tokens(x, update) + update
        return x


class Learnable(nn.Module):
    """The skip of every layer goes through a map of its own.

    Args:
        skips: one for every layer.
        dim: width of a token.
    """

    def __init__(self, skips: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.skips = nn.ModuleList(skips)

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        for layer, skip in zip(layers, self.skips, strict=True):
            update = layer(x)
            x = skip(last_tokens(x, update)) + update
        return x


class PostNorm(nn.Module):
    """Every addition is normalised, so a layer needs no norm of its own.

    Args:
        norms: one for every layer.
        dim: width of a token.
    """

    def __init__(self, norms: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output, normalised."""
        for layer, norm in zip(layers, self.norms, strict=True):
            update = layer(x)
            x = norm(last_tokens(x, update) + update)
        return x


class SiameseNorm(nn.Module):
    """Two streams of the same updates, one normalised at every layer, one never.

    Source: the notes on UniMixer, arXiv:2604.00590. A layer reads the sum of the normalised stream
    and of the other one after a norm, so it needs no norm of its own.

    Args:
        norms: for the input of every layer, and one for the output (the stream that is never
            normalised).
        stream_norms: for the stream that is normalised at every layer.
        dim: width of a token.
    """

    def __init__(
        self, norms: Sequence[nn.Module], stream_norms: Sequence[nn.Module], dim: int
    ) -> None:
        super().__init__()
        self.out_dim = dim
        *read_norms, self.out_norm = norms
        self.norms = nn.ModuleList(read_norms)
        self.stream_norms = nn.ModuleList(stream_norms)

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        y = x
        for layer, norm, stream_norm in zip(layers, self.norms, self.stream_norms, strict=True):
            update = layer(x + norm(y))
            x = stream_norm(last_tokens(x, update) + update)
            y = last_tokens(y, update) + update
        return x + self.out_norm(y)
