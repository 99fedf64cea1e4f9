"""The skip around a layer: what a layer's input is multiplied with before the update is added."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from rankloom.layers.connections.layers import Tokens

SkipKind = Literal["identity", "scalar", "vector", "matrix"]
"""Nothing, or a learned weight that starts as one."""


class ScaledSkip(nn.Module):
    """A learned number, or one for every dimension.

    Args:
        width: 1, or the width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tokens) -> Tokens:
        """The tokens times the scale."""
        return x * self.scale


class MatrixSkip(nn.Module):
    """A learned matrix, which starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, x: Tokens) -> Tokens:
        """The tokens through the matrix."""
        return functional.linear(x, self.weight)


def build_skips(kind: SkipKind, dim: int, num_layers: int) -> list[nn.Module]:
    """A skip for every layer over tokens of width `dim`."""
    builders: dict[SkipKind, Callable[[], nn.Module]] = {
        "identity": nn.Identity,
        "scalar": lambda: ScaledSkip(1),
        "vector": lambda: ScaledSkip(dim),
        "matrix": lambda: MatrixSkip(dim),
    }
    return [builders[kind]() for _ in range(num_layers)]
