"""What loops, routers and hyper-connections of a model do while it scores rows, watched by hooks.

Watched are loops and lists of layers (`loop_chains`), every `TopKRouter` and `ReLURouter`, and the
coefficients of hyper-connections, at every call. Models that can stop at several depths run all of
them. Calls of one module over other numbers of tokens, or of which only one has a mask, are told
apart. Padding does not count where a mask is known that fits (`token_masks`).
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.loop_chains import ChainLog, Part, States, find_chains, run_all_depths
from rankloom.evaluation.loops import (
    CoefficientSums,
    Padding,
    RouterSums,
    RouterUse,
    StateSimilarity,
    StateSums,
    StreamCoefficients,
)
from rankloom.evaluation.protocol import autocast, evaluation_mode
from rankloom.evaluation.token_masks import KnownMasks
from rankloom.layers.connections.hyper_coefficients import (
    DynamicCoefficients,
    ManifoldCoefficients,
    StaticCoefficients,
)
from rankloom.layers.packing import without_packing
from rankloom.layers.routing import ReLURouter, Routing, TopKRouter

DISCOVERY_ROWS = 2
"""Rows on which loops are looked for."""
ROUTERS = (TopKRouter, ReLURouter)
"""Modules whose routing is watched."""
COEFFICIENTS = (StaticCoefficients, DynamicCoefficients, ManifoldCoefficients)
"""Modules whose coefficients are watched."""


class LoopFindings(NamedTuple):
    """What was measured of one model."""

    states: list[StateSimilarity]
    """Loops and lists of layers."""
    routers: list[RouterUse]
    """Routers that were called."""
    coefficients: list[StreamCoefficients]
    """Modules of coefficients that were called."""


def measure_loops(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    run: str,
    device: str | torch.device = "cpu",
) -> LoopFindings:
    """Measure loops, lists of layers, routers and coefficients of a model on some rows.

    The model runs in evaluation mode and float32, at all its depths.

    Args:
        model: a ranker, already on `device`.
        batches: the rows.
        run: label that the results carry.
        device: where the batches are moved to.

    Returns:
        What there is; empty lists for a model without any of it, or without rows.
    """
    place = torch.device(device)
    watch: _Watch | None = None
    with ExitStack() as hooks:
        hooks.enter_context(evaluation_mode(model))
        hooks.enter_context(without_packing(model))  # rows are told apart by their places
        hooks.enter_context(torch.inference_mode())
        hooks.enter_context(autocast(place, "float32"))
        for batch in batches:
            if not batch.size:
                continue
            rows = batch.without_labels().to(place, non_blocking=True)
            if watch is None:
                few = torch.arange(min(DISCOVERY_ROWS, rows.size), device=place)
                watch = _Watch(model, find_chains(model, rows.select(few)))
                if not watch.anything:
                    break
                watch.hook(hooks)
            watch.begin(rows.size)
            run_all_depths(model, rows)
            watch.end()
    return LoopFindings([], [], []) if watch is None else watch.findings(run)


Sums = TypeVar("Sums")


class _ByCall(Generic[Sums]):
    """Sums of every call, by part."""

    def __init__(self, new: Callable[[], Sums]) -> None:
        self._new = new
        self.sums: dict[Part, list[Sums]] = {}
        self.count: dict[Part, int] = {}
        """Calls in this forward pass."""

    def at_call(self, part: Part) -> Sums:
        """The sums of the call that is being made."""
        sums = self.sums.setdefault(part, [])
        call = self.count.get(part, 0)
        self.count[part] = call + 1
        if call == len(sums):
            sums.append(self._new())
        return sums[call]


class _Watch:
    """Hooks on one model and the sums that they fill."""

    def __init__(self, model: nn.Module, chains: set[str]) -> None:
        self._model = model
        self._masks = KnownMasks()
        self._log = ChainLog(model, self._masks, only=chains)
        self._states: dict[Part, tuple[tuple[str, ...], StateSums]] = {}
        self._routers = _ByCall(RouterSums)
        self._coefficients = _ByCall(CoefficientSums)
        self._before: dict[Part, Routing] = {}  # the call before, in this forward pass
        self.anything = bool(chains) or any(
            isinstance(part, ROUTERS + COEFFICIENTS) for part in model.modules()
        )

    def hook(self, hooks: ExitStack) -> None:
        """Put hooks on the model."""
        self._masks.hook_calls(self._model, hooks)
        self._log.hook(hooks)
        for path, part in self._model.named_modules():
            if isinstance(part, ROUTERS):
                hooks.callback(part.register_forward_hook(self._routes(path)).remove)
            elif isinstance(part, COEFFICIENTS):
                hooks.callback(part.register_forward_hook(self._mixes(path)).remove)
        self._masks.hook_returns(self._model, hooks)

    def begin(self, batch: int) -> None:
        """A forward pass over a batch of a size begins."""
        self._masks.begin(batch)
        self._log.begin()
        self._before.clear()
        self._routers.count.clear()
        self._coefficients.count.clear()

    def end(self) -> None:
        """A forward pass has ended."""
        for part, states in self._log.states().items():
            self._add_states(part, states)
        self._log.begin()  # lets go of the states

    def _add_states(self, part: Part, states: States) -> None:
        _, sums = self._states.setdefault(part, (states.calls, StateSums()))
        sums.add(states.values, states.mask)

    def _routes(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, routing: Routing) -> None:
            part, mask = self._part(path, routing.gates)
            self._routers.at_call(part).add(routing, self._before.get(part), mask)
            self._before[part] = routing

        return hook

    def _mixes(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            mix, post = output
            part, mask = self._part(path, mix)
            self._coefficients.at_call(part).add(mix, post, mask)

        return hook

    def _part(self, path: str, x: Tensor) -> tuple[Part, Tensor | None]:
        mask = self._masks.fitting(x.shape[1])
        return Part(path, x.shape[1], mask is not None), mask

    def _padding(self, part: Part) -> Padding:
        if part.masked:
            return "excluded"
        return "counted" if self._masks.any else "none"

    def findings(self, run: str) -> LoopFindings:
        """What the sums amount to."""
        states = []
        for part, (calls, sums) in self._states.items():
            cosine, cka = sums.similarities()
            states.append(
                StateSimilarity(
                    run=run,
                    path=part.path,
                    calls=calls,
                    tokens_per_row=part.num_tokens,
                    padding=self._padding(part),
                    tokens=sums.num_tokens,
                    width=sums.width,
                    cosine=tuple(map(tuple, cosine.tolist())),
                    cka=tuple(map(tuple, cka.tolist())),
                )
            )
        routers = [
            RouterUse(
                run=run,
                router=part.path,
                tokens_per_row=part.num_tokens,
                padding=self._padding(part),
                calls=tuple(one.result(call) for call, one in enumerate(sums)),
            )
            for part, sums in self._routers.sums.items()
        ]
        coefficients = [
            StreamCoefficients(
                run=run,
                module=part.path,
                tokens_per_row=part.num_tokens,
                padding=self._padding(part),
                calls=tuple(one.result(call) for call, one in enumerate(sums)),
            )
            for part, sums in self._coefficients.sums.items()
        ]
        return LoopFindings(states, routers, coefficients)
