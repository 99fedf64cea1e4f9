"""What a training under way is made of, to a checkpoint and back."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rankloom.protocols import TrainingBatch
from rankloom.training.checkpoint import CheckpointFolder, Saved
from rankloom.training.course import Course
from rankloom.training.gradients import GradientNorms
from rankloom.training.meter import Clock, LossMeter
from rankloom.training.optim import RankingOptimizer
from rankloom.training.schedule import RunningSchedule


class BatchSource(Protocol):
    """What the loop asks of a loader."""

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Batches from the current position to the end of the epoch."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch (from 0), which decides the order."""

    def state(self) -> dict[str, int]:
        """The position after the batch given last."""

    def restore(self, state: dict[str, int]) -> None:
        """Go to a position that `state` gave."""


@dataclass(frozen=True)
class Parts:
    """What changes while a model trains, the course of numbers aside."""

    model: nn.Module
    """The model."""
    loader: BatchSource
    """Training batches."""
    optimizer: RankingOptimizer
    """The optimizer."""
    schedule: RunningSchedule
    """The learning-rate schedule at work."""
    meter: LossMeter
    """Loss since the last evaluation."""
    gradients: GradientNorms
    """Gradient norms since the last evaluation."""
    clock: Clock
    """Times."""
    device: torch.device
    """Where the model is."""


def plain_state(course: Course, parts: Parts) -> dict[str, Any]:
    """Everything but tensors, as JSON values."""
    within = course.step_in_epoch > 0
    return {
        "course": asdict(course),
        "loader": parts.loader.state() if within else None,
        "schedule": parts.schedule.state(),
        "meter": parts.meter.state(),
        "gradients": parts.gradients.state(),
        "clock": parts.clock.state(),
    }


def save(checkpoints: CheckpointFolder, course: Course, parts: Parts) -> None:
    """Write a checkpoint; errors as in `CheckpointFolder.save`."""
    tensors = {
        **_prefixed("model", parts.model.state_dict()),
        **_prefixed("optimizer", _optimizer_tensors(parts.model, parts.optimizer)),
        "random/cpu": torch.get_rng_state(),
    }
    if parts.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(parts.device)
    checkpoints.save(f"step-{course.step}", plain_state(course, parts), tensors)


def restore(parts: Parts, saved: Saved) -> tuple[Course, dict[str, int] | None]:
    """Put everything back; the course, and the loader's position within an epoch."""
    course = Course(**saved.state["course"])
    parts.clock.restore(saved.state["clock"])
    if course.stopped is not None:
        return course, None  # finished: nothing is left but to load the best weights
    parts.model.load_state_dict(_without_prefix("model", saved.tensors))
    _restore_optimizer(parts.model, parts.optimizer, _without_prefix("optimizer", saved.tensors))
    parts.schedule.restore(saved.state["schedule"])
    parts.meter.restore(saved.state["meter"])
    parts.gradients.restore(saved.state["gradients"])
    torch.set_rng_state(saved.tensors["random/cpu"])
    if "random/cuda" in saved.tensors and parts.device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors["random/cuda"], parts.device)
    return course, saved.state["loader"]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<parameter>/<key>`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `_optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix/` before their names."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose names start with `prefix/`, without it."""
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}/")
    }
