"""MUDD: what a layer reads is made of all earlier outputs, with weights that every token makes.

Source: Xiao et al., ICML 2025, arXiv:2502.12170, and its public code.
Equations, for streams c (query, key, value, skip) and what layers 0..i gave, h[0] the input:
    w = W2 GELU(W1 RMSNorm(h[i+1])) + b            [streams, i+2] for every token
    x[c] = sum over j <= i+1 of w[c,j] h[j]
    h[i+2] = x[skip] + f(x[query], x[key], x[value])
After the last layer there is one stream, the stack's output. W2 starts at zero and b picks the
    newest output, so it starts as the identity connection.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.connections.layers import LastTokens, Layer, Tokens, last_tokens
from rankloom.layers.connections.products import RMSProduct, mixture, wide, without_autocast

INPUTS = ("query", "key", "value")
"""Keywords by which a layer is given its streams; the skip's stream is its tokens."""


class StreamWeights(nn.Module):
    """Weights of all outputs so far for every stream, made from the newest output.

    Args:
        dim: width of a token.
        num_streams: streams to make.
        num_outputs: outputs there are, the stack's input among them.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, dim: int, num_streams: int, num_outputs: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = RMSProduct(dim, hidden_dim)
        nn.init.normal_(self.hidden.weight, std=dim**-0.5)
        self.weight = nn.Parameter(torch.zeros(num_streams * num_outputs, hidden_dim))
        """[streams * outputs, hidden_dim]."""
        self.bias = nn.Parameter(torch.zeros(num_streams, num_outputs))
        """[streams, outputs]."""
        self.bias.detach()[:, -1] = 1.0

    def forward(self, newest: Tokens) -> Float[Tensor, "streams batch tokens outputs"]:
        """The weights, in float32."""
        with without_autocast(newest):
            hidden = functional.gelu(self.hidden(newest))
            weights = functional.linear(hidden, wide(self.weight), wide(self.bias).flatten())
        return torch.unflatten(weights, -1, self.bias.shape).movedim(2, 0)


class MUDD(nn.Module):
    """Multiway dynamic dense connections.

    A layer is called as `layer(x, query=..., key=..., value=...)` with tokens of the same shape as
    `x`, or, with one stream, as `layer(x)`.

    Args:
        dim: width of a token.
        num_layers: layers.
        num_streams: 4 for query, key, value and skip; 1 where all of them are one.
        hidden_multiple: the weights' hidden layer is as wide as there are weights (after the last
            layer four times that), then widened to the next multiple of this.

    Raises:
        ValueError: `num_streams` is neither 1 nor 4, or `hidden_multiple` is below 1.
    """

    def __init__(
        self, dim: int, num_layers: int, *, num_streams: int = 4, hidden_multiple: int = 64
    ) -> None:
        super().__init__()
        if num_streams not in (1, 4):
            raise ValueError(f"num_streams must be 1 or 4; got {num_streams}")
        if hidden_multiple < 1:
            raise ValueError(f"hidden_multiple must be at least 1; got {hidden_multiple}")
        self.out_dim = dim
        self.num_streams = num_streams
        self.weights = nn.ModuleList()
        for layer in range(num_layers):
            last = layer == num_layers - 1
            streams, outputs = 1 if last else num_streams, layer + 2
            hidden = streams * outputs * (4 if last else 1)
            hidden = (hidden // hidden_multiple + 1) * hidden_multiple
            self.weights.append(StreamWeights(dim, streams, outputs, hidden))

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        outputs = [x]
        streams = [x] * self.num_streams
        for layer, weights in zip(layers, self.weights, strict=True):
            *inputs, skip = streams
            update = layer(skip, **dict(zip(INPUTS, inputs, strict=False)))
            newest = last_tokens(skip, update) + update
            outputs = [*(last_tokens(output, update) for output in outputs), newest]
            # [streams, batch, tokens, 1] for every output
            mixed = mixture(outputs, weights(newest).split(1, dim=-1))
            streams = list(mixed.unbind(0))
        return streams[0]
