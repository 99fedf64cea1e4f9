"""Which tokens are padding, as far as hooks can know.

A mask is known where a module is given one, or makes a `TokenSet`. It is a boolean tensor
[batch, tokens], True at real tokens, or one of attention, [batch, heads, queries, tokens], in which
a token that nothing may attend to is padding.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rankloom.layers.tokens.token_set import TokenSet


class KnownMasks:
    """The masks that are known while a model runs."""

    def __init__(self) -> None:
        # Every module that is being called, outermost first, with the masks that it was given.
        self._around: list[tuple[nn.Module, list[Tensor]]] = []
        self._seen: list[Tensor] = []  # given or made in this forward pass
        self._token_sets: list[Tensor] = []  # made in this forward pass
        self._takers: set[nn.Module] = set()  # modules that have been given a mask
        self._batch = 0
        self.any = False
        """Whether there was any mask at all."""

    def begin(self, batch: int) -> None:
        """A forward pass over a batch of a size begins."""
        self._batch = batch
        self._around.clear()
        self._seen.clear()
        self._token_sets.clear()

    def hook_calls(self, model: nn.Module, hooks: ExitStack) -> None:
        """Watch what modules are given; has to come before the hooks that ask for masks."""

        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            own = list(given_masks((*args, *kwargs.values()), self._batch))
            self._around.append((module, own))
            self._seen += own
            if own:
                self._takers.add(module)
                self.any = True

        for part in model.modules():
            hooks.callback(part.register_forward_pre_hook(enters, with_kwargs=True).remove)

    def hook_returns(self, model: nn.Module, hooks: ExitStack) -> None:
        """Watch what modules give; has to come after the hooks that ask for masks."""

        def leaves(module: nn.Module, args: Any, output: Any) -> None:
            self._around.pop()
            if isinstance(output, TokenSet) and output.mask is not None:
                self._token_sets.append(output.mask)
                self._seen.append(output.mask)
                self.any = True

        for part in model.modules():
            hooks.callback(part.register_forward_hook(leaves).remove)

    def fitting(self, num_tokens: int) -> Bool[Tensor, "batch tokens"] | None:
        """The mask of so many tokens; None where none is known.

        One given to the module that is being called, or to one around it, innermost first; then
        the last that was seen in this forward pass: what calls the module may have it without
        being a module itself. Where one of these modules takes masks and now has none that fits,
        its tokens are others than those of a mask that was given elsewhere: only token sets are
        left then.
        """
        given = [mask for _, masks in self._around for mask in masks]
        takes = any(module in self._takers for module, _ in self._around)
        seen = self._token_sets if takes else self._seen
        for mask in (*reversed(given), *reversed(seen)):
            if mask.shape == (self._batch, num_tokens):
                return mask
        return None


def given_masks(value: Any, batch: int) -> Iterator[Bool[Tensor, "batch tokens"]]:
    """The masks in arguments: tensors, token sets, and lists or tuples of them."""
    if isinstance(value, TokenSet):
        value = value.mask
    if isinstance(value, list | tuple):
        for one in value:
            yield from given_masks(one, batch)
    elif isinstance(value, Tensor) and value.dtype is torch.bool and value.ndim:
        if value.shape[0] == batch and value.ndim == 2:
            yield value
        elif value.shape[0] == batch and value.ndim == 4:
            yield value.any(2).any(1)
