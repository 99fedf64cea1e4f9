"""What the stacks of a model do over depth while it scores rows, watched by hooks.

Every `ConnectedStack` of a model that is not part of another one is measured: what its layers read,
the weights of its `BlockPath` and the gates of its `GatedPaths`, each at its first call in a
forward pass. Padding among event tokens does not count where the stack reads a `TokenSet` as it is,
whose mask then fits; layers that see fewer tokens see the last ones. A stack that reads anything
else (fields only, or tokens that the model has changed) is taken to have no padding.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.depth import (
    CosineSums,
    GateSums,
    LayerInput,
    Moments,
    StackDepth,
    WeightSums,
    combined,
    cosine_sums,
    gate_sums,
    layer_gates,
    layer_weights,
    moments,
    ridge_r_squared,
    weight_sums,
)
from rankloom.evaluation.protocol import autocast, evaluation_mode
from rankloom.layers.connections.block_path import BlockPath
from rankloom.layers.connections.layers import ConnectedStack
from rankloom.layers.connections.path_gates import GatedPaths
from rankloom.layers.tokens.token_set import TokenSet


def connected_stacks(model: nn.Module) -> dict[str, ConnectedStack]:
    """The stacks of a model by path, without those inside another one."""
    found: dict[str, ConnectedStack] = {}
    for path, part in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(part, ConnectedStack) and not inside:
            found[path] = part
    return found


def measure_depth(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    run: str,
    device: str | torch.device = "cpu",
) -> list[StackDepth]:
    """Measure every stack of a model on some rows.

    The model runs in evaluation mode and float32. The regressions are fitted on the rows at even
    places and scored on the others.

    Args:
        model: a ranker, already on `device`.
        batches: the rows.
        run: label that the results carry.
        device: where the batches are moved to.

    Returns:
        An entry per stack that is called; none for a model without stacks.
    """
    place = torch.device(device)
    token_sets: list[TokenSet] = []  # of one forward pass
    stacks = {path: _Watched(stack, token_sets) for path, stack in connected_stacks(model).items()}
    if not stacks:
        return []
    rows = 0
    with ExitStack() as hooks:

        def keep_tokens(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, TokenSet):
                token_sets.append(output)

        for part in model.modules():
            hooks.callback(part.register_forward_hook(keep_tokens).remove)
        for watched in stacks.values():
            watched.hook(hooks)
        hooks.enter_context(evaluation_mode(model))
        hooks.enter_context(torch.inference_mode())
        hooks.enter_context(autocast(place, "float32"))
        for batch in batches:
            token_sets.clear()
            for watched in stacks.values():
                watched.begin(rows % 2)
            model(batch.without_labels().to(place, non_blocking=True))
            rows += batch.size
    return [watched.result(run, path) for path, watched in stacks.items() if watched.read]


@dataclass
class _Read:
    """Sums over what one layer read."""

    tokens: int = 0
    cosine: CosineSums | None = None
    halves: list[Moments | None] = field(default_factory=lambda: [None, None])


class _Watched:
    """The sums of one stack, and the hooks that fill them."""

    def __init__(self, stack: ConnectedStack, token_sets: list[TokenSet]) -> None:
        self.stack = stack
        self.token_sets = token_sets
        self.read: dict[int, _Read] = {}
        self.weights: dict[int, WeightSums] = {}
        self.gates: dict[int, GateSums] = {}
        self.begin(0)

    def begin(self, first_half: int) -> None:
        """A forward pass begins, whose first row belongs to a half of the rows, 0 or 1."""
        self.first_half = first_half
        self.start: Tensor | None = None
        self.mask: Tensor | None = None
        self.seen: set[tuple[str, int]] = set()

    def hook(self, hooks: ExitStack) -> None:
        """Put hooks on the stack, on its layers, and on what its connection has of weights."""
        hooks.callback(self.stack.register_forward_pre_hook(self._starts).remove)
        for index, layer in enumerate(self.stack.layers):
            handle = layer.register_forward_pre_hook(self._once("read", index, self._reads))
            hooks.callback(handle.remove)
        parts = list(cast(nn.Module, self.stack.connection).modules())
        weights = [w for part in parts if isinstance(part, BlockPath) for w in part.weights]
        gates = [part.gate for part in parts if isinstance(part, GatedPaths)]
        for kind, modules, add in (
            ("weights", weights, self._weighs),
            ("gates", gates, self._gates),
        ):
            for index, module in enumerate(modules):
                handle = module.register_forward_hook(self._once(kind, index, add))
                hooks.callback(handle.remove)

    def result(self, run: str, path: str) -> StackDepth:
        """What the sums amount to."""
        return StackDepth(
            run=run,
            stack=path,
            weights=tuple(layer_weights(i, self.weights[i]) for i in sorted(self.weights)),
            gates=tuple(layer_gates(i, self.gates[i]) for i in sorted(self.gates)),
            inputs=tuple(_layer_input(i, self.read[i]) for i in sorted(self.read)),
        )

    def _once(self, kind: str, index: int, add: Callable[[int, Tensor], None]) -> Any:
        """A hook that hands on a module's first value in a pass: its output, else its input."""

        def hook(module: nn.Module, args: tuple[Any, ...], *output: Any) -> None:
            if self.start is not None and (kind, index) not in self.seen:
                self.seen.add((kind, index))
                add(index, output[0] if output else args[0])

        return hook

    def _starts(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.start is None:
            self.start = args[0]
            self.mask = next((s.mask for s in self.token_sets if s.x is args[0]), None)

    def _real(self, num_tokens: int) -> Tensor | None:
        return None if self.mask is None else self.mask[:, self.mask.shape[1] - num_tokens :]

    def _reads(self, index: int, x: Tensor) -> None:
        assert self.start is not None  # a stack is called before its layers
        num_tokens = x.shape[1]
        start = self.start[:, self.start.shape[1] - num_tokens :]  # [batch, last_tokens, dim]
        real = self._real(num_tokens)
        sums = self.read.setdefault(index, _Read())
        sums.tokens = num_tokens
        if x.shape == start.shape:
            sums.cosine = combined(sums.cosine, cosine_sums(x, start, real))
        for half in (0, 1):
            rows = slice((half + self.first_half) % 2, None, 2)
            chosen = None if real is None else real[rows]
            added = moments(x[rows], start[rows], chosen)
            sums.halves[half] = combined(sums.halves[half], added)

    def _weighs(self, index: int, weights: Tensor) -> None:
        found = weight_sums(weights, self._real(weights.shape[1]))
        self.weights[index] = combined(self.weights.get(index), found)

    def _gates(self, index: int, gates: Tensor) -> None:
        found = gate_sums(gates, self._real(gates.shape[1]))
        self.gates[index] = combined(self.gates.get(index), found)


def _layer_input(index: int, sums: _Read) -> LayerInput:
    fitted, scored = sums.halves
    assert fitted is not None
    assert scored is not None  # both are added to at once
    cosine = float("nan")
    if sums.cosine is not None:
        cosine = float(sums.cosine.total / sums.cosine.num_values)
    return LayerInput(
        layer=index,
        tokens=sums.tokens,
        cosine=cosine,
        r_squared=ridge_r_squared(fitted, scored),
    )
