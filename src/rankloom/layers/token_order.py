"""Which token may attend to which: padding, and an order of the tokens or none."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.own_operation import own_operation

Mask = Bool[Tensor, "batch 1 #tokens tokens"]


class CausalOrder(nn.Module):
    """Every token attends to itself and to the real ones before it.

    A padded token attends to itself too, so that none attends to nothing.

    Args:
        num_tokens: tokens, at most.
        num_open: how many of the last ones also attend to each other in any order.
    """

    def __init__(self, num_tokens: int, num_open: int = 0) -> None:
        super().__init__()
        before = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
        before[num_tokens - num_open :, num_tokens - num_open :] = True
        self.register_buffer("before", before, persistent=False)
        self.before: Bool[Tensor, "num_tokens num_tokens"]
        itself = torch.eye(num_tokens, dtype=torch.bool)
        self.register_buffer("itself", itself, persistent=False)
        self.itself: Bool[Tensor, "num_tokens num_tokens"]

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], real: Bool[Tensor, "batch tokens"] | None
    ) -> Mask | None:
        """The mask of tokens `x`; `real` is True at those that are no padding, None: all are."""
        num_tokens = x.shape[1]
        before = self.before[:num_tokens, :num_tokens]
        if real is None:
            # All rows by name: a first axis of one would be told apart from a batch of one.
            return before.expand(x.shape[0], 1, -1, -1)
        itself = self.itself[:num_tokens, :num_tokens]
        if torch.compiler.is_exporting() or x.device.type != "cpu":
            return _seen(before, itself, real)
        seen: Mask = _seen_once(before, itself, real)
        return seen


class NoOrder(nn.Module):
    """Every token attends to all real ones, of which every row has some."""

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], real: Bool[Tensor, "batch tokens"] | None
    ) -> Mask | None:
        """As `CausalOrder.forward`; None: to all."""
        return None if real is None else real[:, None, None]


def _seen(before: Tensor, itself: Tensor, real: Tensor) -> Tensor:
    return (before & real[:, None, None]) | itself


@own_operation("seen_before")
def _seen_once(before: Tensor, itself: Tensor, real: Tensor) -> Tensor:
    """`_seen`, which a compiler would do one bool at a time, and again for every reader."""
    return _seen(before, itself, real)


@_seen_once.register_fake
def _(before: Tensor, itself: Tensor, real: Tensor) -> Tensor:
    return real.new_empty(real.shape[0], 1, *before.shape)
