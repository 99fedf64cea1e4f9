"""What the loop measures while it runs: the loss, and the rate."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rankloom.protocols import Loss

WARMUP_STEPS = 3
"""First steps of a process that the rate leaves out (compilation, first allocations)."""


class LossMeter:
    """Sums of the loss and its parts, kept on the device; reading them is what waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, loss: Loss, step: int) -> None:
        """Count the loss of a step (from 1)."""
        total = loss.total.detach()
        bad = (self._bad_step < 0) & ~torch.isfinite(total)
        self._bad_step.masked_fill_(bad, step)
        self._steps += 1
        for name, value in {"total": total, **loss.parts}.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=torch.float64, device=self._device)
            self._sums[name] += value.detach()

    def bad_step(self) -> int | None:
        """First step whose loss was not finite; None: there was none."""
        step = int(self._bad_step.item())
        return None if step < 0 else step

    def means(self) -> dict[str, float]:
        """Mean per step since the last reset: `train_loss`, and `loss/<part>` for each part."""
        steps = max(1, self._steps)
        named = {name: float(value.item()) / steps for name, value in self._sums.items()}
        total = named.pop("total", 0.0)
        return {"train_loss": total, **{f"loss/{name}": value for name, value in named.items()}}

    def reset(self) -> None:
        """Forget the sums."""
        self._sums = {}
        self._steps = 0

    def state(self) -> dict[str, float]:
        """The sums, for a checkpoint between two evaluations."""
        return {
            "steps": float(self._steps),
            **{f"sum/{name}": float(value.item()) for name, value in self._sums.items()},
        }

    def restore(self, state: dict[str, float]) -> None:
        """Put back what `state` gave."""
        self._steps = int(state["steps"])
        self._sums = {
            name.removeprefix("sum/"): torch.tensor(value, dtype=torch.float64, device=self._device)
            for name, value in state.items()
            if name.startswith("sum/")
        }


class Clock:
    """Time since the start, and the rate of the training steps alone."""

    def __init__(self) -> None:
        self._started = self._rate_started = time.perf_counter()
        self._seconds_before = 0.0  # of this run, before this process
        self._counted_before = (0.0, 0.0, 0.0)  # steps, rows and seconds of the rate, likewise
        self._paused = 0.0
        self._process_steps = 0
        self._last_step = self._started
        self._stopped: float | None = None
        self._steps = 0
        self._rows = 0

    def count(self, rows: int) -> None:
        """A step on `rows` rows is done."""
        if self._process_steps == WARMUP_STEPS:
            self._rate_started = self._last_step
            self._paused, self._steps, self._rows = 0.0, 0, 0
        self._process_steps += 1
        self._steps += 1
        self._rows += rows
        self._last_step = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of the block out of the rate."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def stop(self) -> None:
        """Training is over: times stand still from here on."""
        self._stopped = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the run began, earlier processes included."""
        return self._seconds_before + self._now() - self._started

    @property
    def rows_per_second(self) -> float:
        """Rate of training; 0 before any step counts."""
        _, rows, seconds = self._counted()
        return rows / seconds if seconds > 0 else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step; 0 before any step counts."""
        steps, _, seconds = self._counted()
        return seconds / steps if steps > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        return {"seconds": self.seconds, "counted": self._counted()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the times of an earlier process."""
        self._seconds_before = state["seconds"]
        steps, rows, seconds = state["counted"]
        self._counted_before = (steps, rows, seconds)

    def _counted(self) -> tuple[float, float, float]:
        """Steps, rows and seconds that the rate counts."""
        steps, rows, seconds = self._counted_before
        if self._steps == 0:
            return steps, rows, seconds
        here = self._now() - self._rate_started - self._paused
        return steps + self._steps, rows + self._rows, seconds + here

    def _now(self) -> float:
        return time.perf_counter() if self._stopped is None else self._stopped
