"""Progress bars and tables on stderr, results on stdout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

STDERR = Console(stderr=True)
STDOUT = Console()


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[Any], None]]:
    """A bar for each epoch: rate, time left in the epoch, best validation metric.

    Early stopping decides how many epochs there are, so time left to the last planned one would
    only mislead.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metric]}"),
    )
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bars:
        task = bars.add_task(title, total=None, rate="", metric="")

        def update(state: Any) -> None:
            best = "" if state.metric is None else f"best {state.metric:.5f}"
            done = state.step - state.epoch * state.steps_per_epoch
            bars.update(
                task,
                description=f"{title} epoch {state.epoch + 1}",
                completed=done,
                total=state.steps_per_epoch,
                rate=f"{state.rows_per_second:,.0f} rows/s",
                metric=best,
            )

        yield update


@contextmanager
def row_progress() -> Iterator[Callable[[str, int], None]]:
    """A line per stage of `prepare` with the rows done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bars:
        stages: dict[str, Any] = {}

        def update(stage: str, rows: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=None, rate="")
            task = bars.tasks[bars.task_ids.index(stages[stage])]
            speed = f"{rows / task.elapsed:,.0f} rows/s" if task.elapsed else ""
            bars.update(stages[stage], completed=rows, rate=speed)

        yield update
