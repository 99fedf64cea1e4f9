"""Progress bars and tables on stderr, results on stdout."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

STDERR = Console(stderr=True)
STDOUT = Console()


def figure_lines(label: str, figures: Iterable[str]) -> str:
    """Figures right behind a label, with line breaks where a terminal is too narrow for them.

    Outside a terminal they are one line, as searches and scripts want it.
    """
    lines = [label]
    gap = ""
    for figure in figures:
        if gap and STDOUT.is_terminal and len(lines[-1] + gap + figure) > STDOUT.width:
            lines.append(" " * len(label))
            gap = ""
        lines[-1] += gap + figure
        gap = "  "
    return "\n".join(lines)


@contextmanager
def training_progress(bars: int = 1) -> Iterator[Callable[[str, Any], None]]:
    """A bar for each run under way: rate, time left in the epoch, best validation metric.

    Early stopping decides how many epochs there are, so time left to the last planned one would
    only mislead.

    Args:
        bars: runs at once. The bar that has not moved for longest goes to the next run.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metric]}"),
    )
    shown = Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal)
    with shown:
        tasks: dict[str, TaskID] = {}  # by run, the one that moved last at the end

        def update(run: str, state: Any) -> None:
            if run in tasks:
                task = tasks.pop(run)
            elif len(tasks) < bars:
                task = shown.add_task(run, total=None, rate="", metric="")
            else:
                task = tasks.pop(next(iter(tasks)))
                shown.reset(task)
            tasks[run] = task
            best = "" if state.metric is None else f"best {state.metric:.5f}"
            done = state.step - state.epoch * state.steps_per_epoch
            shown.update(
                task,
                description=f"{run} epoch {state.epoch + 1}",
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
