"""Learning-rate schedules: the configured ones, and any scheduler of torch.

A schedule changes the `lr` of the optimizer's parameter groups. The loop tells it about every step,
evaluation and epoch; what it needs to go on after an interruption is a small JSON value.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rankloom.training.config import ConstantSchedule, CosineSchedule, PlateauSchedule


class RunningSchedule(Protocol):
    """A schedule at work on one optimizer."""

    def after_step(self) -> None:
        """An optimizer step is done."""

    def after_evaluation(self, metric: float | None, improved: bool) -> None:
        """An evaluation is done: its monitored metric (None: none), and whether it is the best."""

    def after_epoch(self) -> None:
        """An epoch is done; called after its last evaluation."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the optimizer's groups hold their first values."""


@dataclass(frozen=True)
class TorchSchedule:
    """A scheduler of torch in place of the configured schedule (Python callers only)."""

    factory: Callable[[Optimizer], LRScheduler]
    """Makes the scheduler, such as `lambda optimizer: StepLR(optimizer, step_size=3)`."""
    every: Literal["step", "epoch", "evaluation"] = "epoch"
    """When the scheduler's `step` is called. `ReduceLROnPlateau` is always stepped at evaluations,
    with the monitored metric."""

    def start(self, optimizer: Optimizer) -> RunningSchedule:
        """The schedule at work on `optimizer`."""
        return _TorchRunning(self, optimizer)


def start_schedule(
    config: PlateauSchedule | ConstantSchedule | CosineSchedule,
    optimizer: Optimizer,
    total_steps: int,
) -> RunningSchedule:
    """A configured schedule at work on `optimizer`; `total_steps` are those of all epochs."""
    if isinstance(config, PlateauSchedule):
        return _Plateau(config, optimizer)
    if isinstance(config, CosineSchedule):
        return _Cosine(config, optimizer, total_steps)
    return _Constant()


class _Constant:
    def after_step(self) -> None:
        pass

    def after_evaluation(self, metric: float | None, improved: bool) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class _Plateau(_Constant):
    """Multiplies by `factor` at every evaluation without improvement."""

    def __init__(self, config: PlateauSchedule, optimizer: Optimizer) -> None:
        self._config = config
        self._groups = optimizer.param_groups

    def after_evaluation(self, metric: float | None, improved: bool) -> None:
        if metric is None or improved:
            return
        for group in self._groups:
            lowest = min(group["lr"], self._config.min_learning_rate)
            group["lr"] = max(group["lr"] * self._config.factor, lowest)

    def state(self) -> dict[str, Any]:
        return {"learning_rates": [group["lr"] for group in self._groups]}

    def restore(self, state: dict[str, Any]) -> None:
        for group, rate in zip(self._groups, state["learning_rates"], strict=True):
            group["lr"] = rate


class _Cosine(_Constant):
    """lr(s) = base * (s + 1) / (warmup + 1) while s < warmup, then half a cosine to the floor."""

    def __init__(self, config: CosineSchedule, optimizer: Optimizer, total_steps: int) -> None:
        if config.warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be below the planned steps; got {config.warmup_steps} of "
                f"{total_steps} (epochs times steps per epoch)"
            )
        self._config = config
        self._groups = optimizer.param_groups
        self._base = [group["lr"] for group in self._groups]
        self._total = total_steps
        self._done = 0
        self._apply()

    def after_step(self) -> None:
        self._done += 1
        self._apply()

    def state(self) -> dict[str, Any]:
        return {"steps": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = state["steps"]
        self._apply()

    def _apply(self) -> None:
        warmup = self._config.warmup_steps
        for group, base in zip(self._groups, self._base, strict=True):
            if self._done < warmup:
                group["lr"] = base * (self._done + 1) / (warmup + 1)
                continue
            floor = min(base, self._config.min_learning_rate)
            share = min(1.0, (self._done - warmup) / (self._total - warmup))
            group["lr"] = floor + (base - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


class _TorchRunning:
    """Steps a torch scheduler.

    Its state is the sequence of calls, replayed on a new scheduler: scheduler states of torch hold
    objects that JSON cannot, and replaying restores the groups' other values (momentum) as well.
    """

    def __init__(self, schedule: TorchSchedule, optimizer: Optimizer) -> None:
        self._scheduler = schedule.factory(optimizer)
        self._every = schedule.every
        self._calls = 0
        self._metrics: list[float | None] = []

    def after_step(self) -> None:
        if not self._on_plateau() and self._every == "step":
            self._advance()

    def after_evaluation(self, metric: float | None, improved: bool) -> None:
        if self._on_plateau():
            self._metrics.append(metric)
            if metric is not None:
                self._scheduler.step(metric)  # type: ignore[arg-type]
        elif self._every == "evaluation":
            self._advance()

    def after_epoch(self) -> None:
        if not self._on_plateau() and self._every == "epoch":
            self._advance()

    def state(self) -> dict[str, Any]:
        return {"calls": self._calls, "metrics": self._metrics}

    def restore(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # Replayed calls come before the first optimizer step of this process.
            warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\)")
            for _ in range(state["calls"]):
                self._advance()
            for metric in state["metrics"]:
                self.after_evaluation(metric, False)

    def _on_plateau(self) -> bool:
        return isinstance(self._scheduler, ReduceLROnPlateau)

    def _advance(self) -> None:
        self._calls += 1
        self._scheduler.step()
