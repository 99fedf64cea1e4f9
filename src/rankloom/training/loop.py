"""The training loop: one plain function for every model.

Each step: one batch, the model's own loss or the loss of its logits, backward, clip, update. The
loop reads nothing back from the device except at evaluations, checkpoints and progress reports.
What resuming, clipping, L2 and precision mean exactly stands in docs/training.md.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankloom.allocator import keep_freed_memory
from rankloom.layers.losses import ranking_loss
from rankloom.protocols import HasLoss, Loss
from rankloom.training.batches import check_applied
from rankloom.training.checkpoint import CheckpointFolder, Saved, identify
from rankloom.training.config import TrainingConfig
from rankloom.training.course import Course, Progress, TrainingResult, evaluation_steps
from rankloom.training.gradients import GradientNorms
from rankloom.training.meter import Clock, LossMeter
from rankloom.training.optim import RankingOptimizer
from rankloom.training.resume import BatchSource, Parts, plain_state, restore, save
from rankloom.training.schedule import TorchSchedule, start_schedule

__all__ = ["BatchSource", "Evaluate", "Progress", "TrainingResult", "select_device", "train"]

PROGRESS_SECONDS = 0.5
"""Least time between two progress reports within an epoch."""

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Metrics of a model on the validation split."""


def train(
    model: nn.Module,
    loader: BatchSource,
    config: TrainingConfig,
    *,
    evaluate: Evaluate | None,
    folder: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    schedule: TorchSchedule | None = None,
    fingerprint: str = "",
) -> TrainingResult:
    """Train `model` in place and leave the best weights in it.

    Args:
        model: a ranker, or any module with `loss(batch)`.
        loader: training batches.
        config: settings.
        evaluate: validation metrics of a model; None: no evaluation, the last weights are kept.
        folder: folder of the checkpoint and the best weights; None: the best weights are kept in
            memory, and an interrupted run cannot go on.
        seed: seed of what draws from torch's global generator during training (dropout). The
            caller's generator is left as it was.
        resume: go on from the checkpoint in `folder` when there is one.
        progress: called about twice a second, and at every evaluation.
        schedule: a scheduler of torch in place of the configured schedule.
        fingerprint: what the data are (a hash); a checkpoint made with another one is refused.

    Raises:
        ValueError: the loss is not finite, the monitored metric is missing or NaN, the loader is
            empty or does not follow what the config says of batches, nothing fits a pattern of
            `watch_gradients`, or the checkpoint in `folder` is damaged or belongs to another run.
        OSError: `folder` cannot be written.
    """
    check_applied(loader, config)
    device = select_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    course = Course(steps_per_epoch=len(loader))
    if course.steps_per_epoch == 0:
        raise ValueError("the training split gives no batches; it needs at least two rows")
    model.to(device)
    order = str(getattr(loader, "order", "given"))
    checkpoints: CheckpointFolder | None = None
    saved: Saved | None = None
    if folder is not None:
        data = {"steps_per_epoch": len(loader), "order": order, "fingerprint": fingerprint}
        checkpoints = CheckpointFolder(folder, identify(model, config, seed, data))
        if resume:
            saved = checkpoints.load()
        else:
            checkpoints.clear()
    evaluate_at = evaluation_steps(course.steps_per_epoch, config.evaluations_per_epoch)
    total_steps = config.epochs * course.steps_per_epoch
    objective = _objective(model, config, getattr(loader, "batch_size", config.batch_size))
    resumed = saved is not None
    finished = saved is not None and saved.state["course"]["stopped"] is not None
    best: dict[str, Tensor] = {}  # best weights, when there is no folder for them
    position: dict[str, int] | None = None  # of the loader, when an epoch is taken up in its middle
    reported = time.perf_counter()

    # The caller's random state is put back at the end.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        optimizer = RankingOptimizer(model, config)
        try:
            if schedule is None:
                rates = start_schedule(config.schedule, optimizer, total_steps)
            else:
                rates = schedule.start(optimizer)
            meter, clock = LossMeter(device), Clock()
            gradients = GradientNorms(model, config.watch_gradients, device)
            parts = Parts(model, loader, optimizer, rates, meter, gradients, clock, device)
            if saved is not None:
                course, position = restore(parts, saved)
            while course.stopped is None:
                loader.set_epoch(course.epoch)
                if position is not None:
                    loader.restore(position)
                    position = None
                for batch in loader:
                    if not model.training:
                        model.train()
                    rows = batch.to(device, non_blocking=True)
                    optimizer.zero_grad(set_to_none=True)
                    with torch.autocast(
                        device.type, torch.bfloat16, enabled=config.precision == "bf16"
                    ):
                        loss = objective(rows)
                    loss.total.backward()  # type: ignore[no-untyped-call]
                    gradients.add()
                    optimizer.step()
                    rates.after_step()
                    course.count_step()
                    meter.add(loss, course.step)
                    clock.count(rows.size)

                    evaluating = course.step_in_epoch in evaluate_at
                    saving = evaluating or _is_multiple(course.step, config.checkpoint_steps)
                    reporting = time.perf_counter() - reported >= PROGRESS_SECONDS
                    if not (saving or reporting):
                        continue  # nothing below waits for the device in this step
                    _check_finite(meter, optimizer, config, course)
                    state = _progress(course, clock, meter, total_steps)
                    with clock.pause():
                        if evaluating:
                            metrics = {} if evaluate is None else evaluate(model)
                            improved = evaluate is not None and course.take(metrics, config)
                            measured = meter.means() | gradients.means()
                            course.history.append(
                                _history_row(course, clock, measured, optimizer, metrics)
                            )
                            rates.after_evaluation(metrics.get(config.monitor), improved)
                            meter.reset()
                            gradients.reset()
                            if improved and checkpoints is not None:
                                checkpoints.save_best(f"best-{course.step}", model.state_dict())
                            elif improved:
                                best = {k: v.clone() for k, v in model.state_dict().items()}
                            state = replace(state, metric=course.best)
                        if course.step_in_epoch == course.steps_per_epoch:
                            rates.after_epoch()
                            course.close_epoch(config.epochs)
                        if saving and checkpoints is not None and course.stopped is None:
                            save(checkpoints, course, parts)
                    if progress is not None:
                        progress(state)
                    reported = time.perf_counter()
                    if course.stopped is not None:
                        break
                if course.step_in_epoch != 0 and course.stopped is None:
                    raise ValueError(
                        f"the loader says {course.steps_per_epoch} batches per epoch but gave "
                        "another number"
                    )
            clock.stop()
        finally:
            optimizer.release()

    if evaluate is None:
        course.best_step = course.step
    if checkpoints is not None:
        if not finished:
            if evaluate is None:
                checkpoints.save_best(f"last-{course.step}", model.state_dict())
            checkpoints.save("end", plain_state(course, parts), None)
        best = checkpoints.load_best()
    if best:
        model.load_state_dict(best)
    return TrainingResult(
        epochs=math.ceil(course.step / course.steps_per_epoch),
        steps=course.step,
        best_step=course.best_step,
        best_metrics=course.best_metrics,
        history=course.history,
        seconds=clock.seconds,
        rows_per_second=clock.rows_per_second,
        stopped=str(course.stopped),
        table_optimizer=config.table_optimizer.kind,
        shuffle_order=order,
        resumed=resumed,
    )


def select_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of a setting; `auto` is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is not available here; set device to cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # With an index, so that it equals the device of a tensor there.
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _objective(model: nn.Module, config: TrainingConfig, batch_size: int) -> Callable[[Any], Loss]:
    """The loss of a batch, compiled if asked for."""
    own = model.loss if isinstance(model, HasLoss) else None

    def plain(batch: Any) -> Loss:
        return ranking_loss(model(batch), batch) if own is None else own(batch)

    if not config.compile:
        return plain
    # What was compiled for models trained before counts against the compiler's limit of versions.
    torch.compiler.reset()
    # Sequences change their number of events with every batch, everything else keeps its shape:
    # then the shapes that move are found out by the compiler itself.
    static = torch.compile(plain, dynamic=False)
    moving = torch.compile(plain, dynamic=None)

    def compiled(batch: Any) -> Loss:
        # The last batch of an epoch has another size: not worth a compilation.
        if batch.size != batch_size:
            return plain(batch)
        with warnings.catch_warnings():
            # The compiler looks at `.grad` of what comes out of a table, and warns of itself.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
            return moving(batch) if batch.sequences else static(batch)

    return compiled


def _check_finite(
    meter: LossMeter, optimizer: RankingOptimizer, config: TrainingConfig, course: Course
) -> None:
    step = meter.bad_step()
    if step is not None:
        epoch = (step - 1) // course.steps_per_epoch
        rates = ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups)
        raise ValueError(
            f"the loss is not a finite number at step {step} (epoch {epoch}): lower learning_rate "
            f"(now {rates}) or clip_norm (now {config.clip_norm}), and look for infinite or huge "
            "values in numeric features and weights"
        )


def _progress(course: Course, clock: Clock, meter: LossMeter, total_steps: int) -> Progress:
    return Progress(
        epoch=course.epoch,
        step=course.step,
        steps_total=total_steps,
        steps_per_epoch=course.steps_per_epoch,
        rows_per_second=clock.rows_per_second,
        seconds=clock.seconds,
        remaining_seconds=clock.seconds_per_step * (total_steps - course.step),
        loss=meter.means()["train_loss"],
        metric=course.best,
    )


def _history_row(
    course: Course,
    clock: Clock,
    measured: dict[str, float],
    optimizer: RankingOptimizer,
    metrics: dict[str, float],
) -> dict[str, float]:
    return {
        "step": course.step,
        "epoch": course.step / course.steps_per_epoch,
        "seconds": clock.seconds,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **measured,
        **metrics,
    }


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
