"""Where a training stands, and how it ended."""

import math
from dataclasses import dataclass, field

from rankloom.training.config import TrainingConfig


@dataclass(frozen=True)
class Progress:
    """Where training stands; what a progress bar shows."""

    epoch: int
    """Epoch under way, from 0."""
    step: int
    """Optimizer steps done."""
    steps_total: int
    """Steps of all planned epochs; early stopping may need fewer."""
    steps_per_epoch: int
    """Steps of an epoch."""
    rows_per_second: float
    """Training rows per second so far, evaluations not counted."""
    seconds: float
    """Time since the start, earlier parts of a resumed run included."""
    remaining_seconds: float
    """Time to the end of all planned epochs at this rate, evaluations not counted."""
    loss: float
    """Mean training loss per step since the last evaluation (at an evaluation: before it)."""
    metric: float | None
    """Best monitored metric so far; None before the first evaluation."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training went. The model holds the best weights."""

    epochs: int
    """Epochs begun."""
    steps: int
    """Optimizer steps."""
    best_step: int
    """Step whose weights the model holds."""
    best_metrics: dict[str, float]
    """Validation metrics at that step; empty without an evaluation."""
    history: list[dict[str, float]]
    """One row per evaluation: step, epoch, seconds, learning_rate, train_loss, `loss/<part>`,
    `gradient_norm/<pattern>`, and the validation metrics."""
    seconds: float
    """Wall time, evaluations and earlier parts of a resumed run included."""
    rows_per_second: float
    """Training rows per second; evaluations, checkpoints and first steps not counted."""
    stopped: str
    """Why it ended: `patience` or `epochs`."""
    table_optimizer: str
    """Kind of the table optimizer."""
    shuffle_order: str
    """How the loader orders rows, as it says."""
    resumed: bool
    """Whether it went on from a checkpoint."""


@dataclass
class Course:
    """Everything about a training under way that is a plain number or text."""

    steps_per_epoch: int
    """Steps of an epoch."""
    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimizer steps done."""
    step_in_epoch: int = 0
    """Of these, in the epoch under way."""
    without_improvement: int = 0
    """Evaluations since the best one."""
    best: float | None = None
    """Best value of the monitored metric."""
    best_step: int = 0
    """Step of the best value."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """All metrics at that step."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Rows so far."""
    stopped: str | None = None
    """Why it ended; None: it has not."""

    def count_step(self) -> None:
        """A step is done."""
        self.step += 1
        self.step_in_epoch += 1

    def close_epoch(self, epochs: int) -> None:
        """The epoch is done; it may have been the last."""
        self.epoch += 1
        self.step_in_epoch = 0
        if self.stopped is None and self.epoch >= epochs:
            self.stopped = "epochs"

    def take(self, metrics: dict[str, float], config: TrainingConfig) -> bool:
        """Take in the metrics of an evaluation.

        Returns:
            Whether the monitored one is the best so far. Without that, patience wears off.

        Raises:
            ValueError: the monitored metric is missing or NaN.
        """
        value = monitored(metrics, config.monitor)
        sign = 1.0 if config.monitor_mode == "max" else -1.0
        if self.best is not None and sign * (value - self.best) <= config.min_delta:
            self.without_improvement += 1
            if self.without_improvement >= config.patience:
                self.stopped = "patience"
            return False
        self.best, self.best_step, self.best_metrics = value, self.step, dict(metrics)
        self.without_improvement = 0
        return True


def monitored(metrics: dict[str, float], name: str) -> float:
    """The monitored metric.

    Raises:
        ValueError: it is missing or NaN.
    """
    if name not in metrics:
        raise ValueError(
            f"monitor {name} is no metric of the evaluation; it gives {', '.join(sorted(metrics))}"
        )
    if math.isnan(metrics[name]):
        raise ValueError(
            f"monitor {name} is undefined on the validation split (labels of one class only, or "
            "scores that are not numbers); check the split, or monitor another metric"
        )
    return metrics[name]


def evaluation_steps(steps_per_epoch: int, evaluations: int) -> frozenset[int]:
    """Steps within an epoch (from 1) after which to evaluate: evenly spread, the last included."""
    count = min(evaluations, steps_per_epoch)
    return frozenset(math.ceil(steps_per_epoch * (k + 1) / count) for k in range(count))
