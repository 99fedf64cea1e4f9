"""Loops of a model, and lists of layers whose modules follow one another, found by running it.

- A loop is a module called `loop`, or any that is called several times in a forward pass with what
  its call before gave. Its states are the first input and what every call gives.
- A list of layers is a `ConnectedStack`, whose states are what its layers read and what it gives at
  its first call, or a `ModuleList` whose modules are called with what the one before gave; one that
  is called `layers` or `blocks` is taken to be such a list if all of it is called.

Those inside others are left out. A state is what a call takes and gives: tensors of numbers whose
second axis is tokens, taken side by side where there are several. Calls over other numbers of
tokens, or of which only one is given a mask, are calls of another part: a model may send its events
through a loop first and then its fields.
"""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.token_masks import KnownMasks
from rankloom.layers.connections.layers import ConnectedStack
from rankloom.layers.tokens.token_set import TokenSet
from rankloom.protocols import HasDepths

LOOP = "loop"
"""Name of a module that is a loop whatever it is called with, and also where it is called once."""
LISTS = ("layers", "blocks")
"""Names of lists whose modules follow one another, perhaps with something added in between."""

State = tuple[Tensor, ...]
"""What a call takes or gives: tensors [batch, tokens, ...]."""


class Part(NamedTuple):
    """Calls over the same tokens."""

    path: str
    """Path of what is called."""
    num_tokens: int
    """Tokens of a row."""
    masked: bool
    """Whether they have a mask."""


@dataclass
class Call:
    """One call of a module."""

    path: str
    given: State
    gave: State
    mask: Tensor | None
    """The mask that fits."""


@dataclass
class States:
    """The states of one part in one forward pass."""

    calls: tuple[str, ...]
    """Path of the module that gave each state but the first."""
    values: list[Float[Tensor, "batch tokens width"]]
    """States, one more than calls."""
    mask: Tensor | None
    """False at padding; None: not known."""


def run_all_depths(model: nn.Module, batch: Batch) -> None:
    """Score a batch at every depth that the model has."""
    if isinstance(model, HasDepths):
        model.depth_logits(batch)
    else:
        model(batch)


class ChainLog:
    """What the loops and lists of layers of a model did in one forward pass.

    Args:
        model: the model.
        masks: masks that are known while it runs.
        only: owners to watch: paths of modules called again and again, of lists, and of stacks;
            None: all.
    """

    def __init__(
        self, model: nn.Module, masks: KnownMasks, only: Iterable[str] | None = None
    ) -> None:
        self._modules = dict(model.named_modules())
        self._masks = masks
        self._only = None if only is None else set(only)
        self._calls: dict[str, list[Call]] = {}
        self._reads: dict[str, list[Tensor]] = {}
        self._gave: dict[str, tuple[Tensor, Tensor | None]] = {}

    def begin(self) -> None:
        """A forward pass begins."""
        for log in (self._calls, self._reads, self._gave):
            log.clear()

    def hook(self, hooks: ExitStack) -> None:
        """Put hooks on what is watched."""
        for path, part in self._modules.items():
            parent = path.rpartition(".")[0]
            owner = parent if isinstance(self._modules[parent], nn.ModuleList) else path
            if self._watched(owner):
                self._hook_calls(owner, path, part, hooks)
            if isinstance(part, ConnectedStack) and self._watched(path):
                self._hook_stack(path, part, hooks)

    def states(self) -> dict[Part, States]:
        """States by part, in the order of the model, outermost only."""
        found: dict[Part, States] = {}
        for path in self._modules:  # outer modules come before those inside them
            if any(path.startswith(f"{part.path}.") for part in found):
                continue
            if path in self._gave:
                states = self._stack_states(path)
                found[Part(path, states.values[0].shape[1], states.mask is not None)] = states
                continue
            by_part: dict[Part, list[Call]] = {}
            for call in self._calls.get(path, []):
                num_tokens = sum(x.shape[1] for x in call.gave)
                part = Part(path, num_tokens, call.mask is not None)
                by_part.setdefault(part, []).append(call)
            for part, calls in by_part.items():
                if self._is_chain(path, calls):
                    values = [_flat(calls[0].given), *(_flat(call.gave) for call in calls)]
                    names = tuple(call.path for call in calls)
                    found[part] = States(names, values, calls[0].mask)
        return {part: one for part, one in found.items() if _one_width(one)}

    def _is_chain(self, path: str, calls: list[Call]) -> bool:
        name = path.rpartition(".")[2]
        called = {self._modules[call.path] for call in calls}
        if name == LOOP or (name in LISTS and called == set(self._modules[path].children())):
            return True
        return len(calls) > 1 and all(
            one is other
            for before, after in itertools.pairwise(calls)
            for one, other in zip(before.gave, after.given, strict=True)
        )

    def _watched(self, owner: str) -> bool:
        return self._only is None or owner in self._only

    def _hook_calls(self, owner: str, path: str, part: nn.Module, hooks: ExitStack) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            gave = _state(output)
            given = _state(args)[: len(gave)]
            if gave and [x.shape for x in given] == [x.shape for x in gave]:
                mask = self._masks.fitting(sum(x.shape[1] for x in gave))
                self._calls.setdefault(owner, []).append(Call(path, given, gave, mask))

        hooks.callback(part.register_forward_hook(hook).remove)

    def _hook_stack(self, path: str, stack: ConnectedStack, hooks: ExitStack) -> None:
        def reads(module: nn.Module, args: tuple[Any, ...]) -> None:
            if path not in self._gave:
                self._reads.setdefault(path, []).append(args[0])

        def gives(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if path not in self._gave:
                self._gave[path] = output, self._masks.fitting(args[0].shape[1])

        for layer in stack.layers:
            hooks.callback(layer.register_forward_pre_hook(reads).remove)
        hooks.callback(stack.register_forward_hook(gives).remove)

    def _stack_states(self, path: str) -> States:
        output, mask = self._gave[path]
        states = [*self._reads.get(path, []), output]
        num_tokens = min(x.shape[1] for x in states)  # layers may see the last tokens only
        return States(
            calls=tuple(f"{path}.layers.{layer}" for layer in range(len(states) - 1)),
            values=[x[:, x.shape[1] - num_tokens :] for x in states],
            mask=None if mask is None else mask[:, mask.shape[1] - num_tokens :],
        )


def find_chains(model: nn.Module, batch: Batch) -> set[str]:
    """Paths of the loops and lists of layers that a pass over some rows shows."""
    masks = KnownMasks()
    log = ChainLog(model, masks)
    with ExitStack() as hooks:
        masks.hook_calls(model, hooks)
        log.hook(hooks)
        masks.hook_returns(model, hooks)
        masks.begin(batch.size)
        run_all_depths(model, batch)
    return {part.path for part in log.states()}


def _one_width(states: States) -> bool:
    """Whether all states are of one width; others have no cosine."""
    return len({x.shape[2] for x in states.values}) == 1


def _flat(state: State) -> Float[Tensor, "batch tokens width"]:
    """Tokens one after another, what a token has in further axes side by side."""
    return torch.cat([x.flatten(2) for x in state], 1)


def _state(value: Any) -> State:
    """The tensors [batch, tokens, ...] that values begin with."""
    values = value if isinstance(value, tuple) else (value,)
    found: list[Tensor] = []
    for one in values:
        x = one.x if isinstance(one, TokenSet) else one
        if not (isinstance(x, Tensor) and x.ndim > 2 and x.is_floating_point()):
            break
        found.append(x)
    return tuple(found)
