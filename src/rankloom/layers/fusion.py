"""Fusing two representations into logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.mlp import linear


class BilinearFusion(nn.Module):
    """Multi-head bilinear fusion: b + w_x x + w_y y + sum_h x_h^T W_h y_h, per output.

    Source: Mao et al., AAAI 2023, arXiv:2304.00902, equations 8 and 9. Both inputs are cut into
    `num_heads` pieces; piece h of one meets piece h of the other.

    Raises:
        ValueError: `num_heads` does not divide both widths.
    """

    def __init__(self, x_width: int, y_width: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        if x_width % num_heads or y_width % num_heads:
            raise ValueError(
                f"num_heads must divide both streams' output widths; got num_heads={num_heads}, "
                f"widths {x_width} and {y_width}"
            )
        self._heads = (num_heads, -1)
        self.x_linear = linear(x_width, num_outputs)
        self.y_linear = linear(y_width, num_outputs, bias=False)  # one bias serves both
        x_head, y_head = x_width // num_heads, y_width // num_heads
        # As one xavier-normal matrix from all pairs within a head to the outputs.
        std = math.sqrt(2 / (num_heads * x_head * y_head + num_outputs))
        self.weight = nn.Parameter(torch.randn(num_heads, x_head, y_head, num_outputs) * std)
        """W: [heads, x_head, y_head, outputs]."""

    def forward(
        self, x: Float[Tensor, "batch x_width"], y: Float[Tensor, "batch y_width"]
    ) -> Float[Tensor, "batch outputs"]:
        """The fused outputs."""
        x_heads = torch.unflatten(x, 1, self._heads).transpose(0, 1)  # [heads, batch, x_head]
        y_heads = torch.unflatten(y, 1, self._heads)  # [batch, heads, y_head]
        met = torch.bmm(x_heads, self.weight.flatten(2))  # [heads, batch, y_head * outputs]
        met = torch.unflatten(met, 2, self.weight.shape[2:]).transpose(0, 1)
        pairs = (met * y_heads.unsqueeze(-1)).sum((1, 2))  # [batch, outputs]
        return self.x_linear(x) + self.y_linear(y) + pairs
