"""Dropout whose mask costs little on a CPU.

torch draws a random number for every unit, one at a time. Here one draw of 64 bits serves four
units, which makes the mask of a large batch several times cheaper (`docs/lab-notes.md`).
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.own_operation import own_operation

STEPS = 2**16
"""Shares of dropped units are multiples of one over this: four numbers of a 64-bit draw."""
FEW_UNITS = 2**14
"""Below so many units the call itself costs more than torch's draws."""


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with the masks of `dropout`."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The units, a share of them zero and the others scaled up; unchanged at evaluation."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """A share `p` of the units zero, the others scaled up; what dropout does in training.

    On a CPU the share is rounded to 1/65536, and the units that stay are scaled by the rounded one,
    so that their expectation is exact. Masks follow torch's default generator, but are others than
    torch's own for the same seed, and others again in a compiled program. Few units, exported
    programs and accelerators draw as torch does.
    """
    kept = round((1 - p) * STEPS)
    if kept == STEPS:
        return x
    small = x.numel() < FEW_UNITS
    if small or x.device.type != "cpu" or torch.compiler.is_exporting() or kept == 0:
        return functional.dropout(x, p)
    if torch.compiler.is_compiling():
        seed = torch.randint(2**62, ())
        return torch.where(_seeded_mask(x, kept, seed), x * (STEPS / kept), 0.0)
    return cast(Tensor, _Mask.apply(x, kept))  # type: ignore[no-untyped-call]


class _Mask(torch.autograd.Function):
    """A random mask times a scale; the mask is kept for the gradient, a byte per unit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: int) -> Tensor:
        # torch multiplies by bytes faster than by booleans.
        mask = _mask(x, kept).view(torch.uint8)
        ctx.save_for_backward(mask)
        ctx.scale = STEPS / kept
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None


def _mask(x: Tensor, kept: int, generator: torch.Generator | None = None) -> Tensor:
    """True for the share of the units that stays."""
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)
    numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return numbers >= STEPS // 2 - kept  # -32768 to 32767, all equally likely


@own_operation("seeded_mask")
def _seeded_mask(x: Tensor, kept: int, seed: Tensor) -> Tensor:
    """`_mask` as a function of a seed.

    A compiler fuses all of dropout but this, whose numbers it would draw one by one. It may take
    two calls with the same arguments for one, so each has a seed of its own.
    """
    return _mask(x, kept, torch.Generator().manual_seed(int(seed)))


@_seeded_mask.register_fake
def _(x: Tensor, kept: int, seed: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bool)
