"""Connections that weigh all earlier outputs by learned numbers: DenseFormer and ANCRe.

Sources: Pagliardini et al., NeurIPS 2024, arXiv:2402.02622, and its code (DenseFormer); ANCRe, from
    its public code and the notes made on it.
Equations, with f the layer's update:
    DenseFormer  X[i+1] = x[i] + f[i](x[i]),  x[i+1] = sum over j <= i+1 of a[i,j] X[j]
    ANCRe        x[l+1] = f[l](x[l]) + sum over i <= l of p[l,i] x[i],  p[l] = softmax(theta[l]/tau)
DenseFormer's earlier outputs X are those before mixing, its X[0] is the input; ANCRe's are what the
    layers read.
"""

from collections.abc import Sequence

import torch
from torch import nn

from rankloom.layers.connections.layers import LastTokens, Layer, Tokens, last_tokens
from rankloom.layers.connections.products import mixture


class DenseFormer(nn.Module):
    """Layers read a weighted sum of the input and of all earlier outputs.

    It starts as the identity connection: the newest output has weight one, all others zero.

    Args:
        dim: width of a token.
        num_layers: layers.
        dilation: an output is mixed with those whose number differs by a multiple of this.
        period: every so many layers there is a mixing; others read what the one below gave.

    Raises:
        ValueError: `dilation` or `period` is below 1 or above `num_layers`.
    """

    def __init__(self, dim: int, num_layers: int, *, dilation: int = 1, period: int = 1) -> None:
        super().__init__()
        for name, value in (("dilation", dilation), ("period", period)):
            if not 1 <= value <= num_layers:
                raise ValueError(
                    f"{name} must be between 1 and the number of layers, {num_layers}; got "
                    f"{value}. With a longer one nothing would be mixed"
                )
        self.out_dim = dim
        self.num_layers = num_layers
        self.dilation = dilation
        self.period = period
        self.weights = nn.ParameterList()
        """For every mixing the weights of what is mixed, oldest first."""
        for newest in range(period, num_layers + 1, period):
            weight = torch.zeros((newest + dilation) // dilation)
            weight[-1] = 1.0
            self.weights.append(weight)

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        outputs = [x]
        mixings = iter(self.weights)
        for newest, layer in zip(range(1, self.num_layers + 1), layers, strict=True):
            update = layer(x)
            x = last_tokens(x, update) + update
            outputs.append(x)
            if newest % self.period == 0:
                mixed = outputs[newest % self.dilation :: self.dilation]
                x = mixture([last_tokens(h, x) for h in mixed], next(mixings).unbind())
        return x


class ANCRe(nn.Module):
    """The skip is a convex combination of everything that layers below have read.

    It starts as the mean of them, so it is not the identity connection at its start.

    Args:
        dim: width of a token.
        num_layers: layers.
        temperature: the softmax's logits are divided by it; small ones make fast choices.

    Raises:
        ValueError: `temperature` is not above zero.
    """

    def __init__(self, dim: int, num_layers: int, *, temperature: float = 0.01) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        self.out_dim = dim
        self.temperature = temperature
        self.logits = nn.ParameterList([torch.zeros(layer + 1) for layer in range(1, num_layers)])
        """For every layer but the first, which has its own input only."""

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        first, *others = layers
        update = first(x)
        reads = [x]
        x = last_tokens(x, update) + update
        for layer, logits in zip(others, self.logits, strict=True):
            reads.append(x)
            update = layer(x)
            weights = torch.softmax(logits / self.temperature, 0)
            skip = mixture([last_tokens(read, update) for read in reads], weights.unbind())
            x = skip + update
        return x
