"""A search over a grid of settings, with the same number of trials for every recipe.

A trial is a recorded run like any other, evaluated on the validation split alone: nothing of a
search ever reads the test split. The best setting is the one whose best evaluation has the best
monitored metric; of equal ones the earlier trial.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from rankloom.runs.environment import Commit, current_commit, current_machine, current_versions
from rankloom.runs.history import read_history
from rankloom.runs.record import StoredRun
from rankloom.training.course import Progress
from rankloom.training.grid import Grid, Plan, load_grid, plan_settings, recipe_values
from rankloom.training.jobs import Job, Outcome, run_jobs
from rankloom.training.loop import select_device
from rankloom.training.recipes import AnyRecipe, load_any_recipe, open_data
from rankloom.training.run_folders import Data, find_run, rows_of
from rankloom.training.trials import Search, Trial, TuneResult, best_trial

SEARCHED_SPLITS = ("valid",)
"""Splits that trials are evaluated on."""


@dataclass(frozen=True)
class PlannedTrial:
    """One trial about to begin."""

    recipe: str
    """Name of the recipe."""
    settings: dict[str, Any]
    """Value of every searched key."""
    trial: int
    """Place in the recipe's search, from 1."""
    trials: int
    """Trials of this recipe."""
    number: int
    """Place in the whole plan, from 1."""
    total: int
    """Trials of all recipes."""
    recorded: bool
    """Whether a finished run of it exists already."""


def tune(
    recipes: Sequence[AnyRecipe | str | Path],
    grid: Grid | str | Path,
    *,
    trials: int | None = None,
    seed: int | None = None,
    out: str | Path = "runs",
    jobs: int = 1,
    announce: Callable[[PlannedTrial], None] | None = None,
    progress: Callable[[PlannedTrial, Progress], None] | None = None,
    finished: Callable[[PlannedTrial, Trial, TuneResult], None] | None = None,
) -> TuneResult:
    """Try settings of recipes on the validation split, each recipe with the same budget.

    The recipe's own setting is always the first trial, so that the result is never worse than it.
    Interrupted, the same call goes on: finished trials are found by their records, those under way
    resume. A trial whose loss is not finite, or that ends in another ValueError, counts as failed
    and the search goes on; a later call tries it again.

    Args:
        recipes: recipes or their paths.
        grid: the grid, or the path of its file.
        trials: trials of each recipe, in place of the grid's.
        seed: in place of the grid's.
        out: folder that run folders go into.
        jobs: trials at once. More than one train in processes of their own with one thread each;
            a script that asks for that guards its start with `if __name__ == "__main__":`.
        announce: called before each trial.
        progress: called now and then during each trial.
        finished: called after each trial, with all results so far.

    Returns:
        Every trial of every recipe, and the best ones.

    Raises:
        FileNotFoundError: a recipe, the grid or a data set does not exist.
        ValueError: a recipe or the grid is wrong, which is found before the first trial.
        OSError: a file cannot be read or written, or a worker process died.
    """
    chosen = [load_any_recipe(item) if isinstance(item, str | Path) else item for item in recipes]
    changes = {"trials": trials, "seed": seed}
    if isinstance(grid, Grid):
        given = {key: value for key, value in changes.items() if value is not None}
        space = Grid.model_validate(grid.model_dump() | given)
    else:
        space = load_grid(grid, trials=trials, seed=seed)
    state = _State(space, jobs, _searches(chosen, space))
    planned = [
        (search, number) for search in state.searches for number in range(1, search.trials + 1)
    ]
    plans: dict[int, PlannedTrial] = {}

    def end(index: int, outcome: Outcome) -> None:
        search, number = planned[index]
        trial = _trial(number, search.plan.settings[number - 1].values, outcome, search.monitor)
        search.done[number] = trial
        state.finished = datetime.now(UTC)
        if finished is not None:
            finished(plans[index], trial, state.result())

    def pending() -> Iterator[Job]:
        for index, (search, number) in enumerate(planned):
            setting = search.plan.settings[number - 1]
            recipe = setting.recipe.model_copy(update={"seed": space.seed})
            known = find_run(recipe, search.dataset, Path(out), splits=SEARCHED_SPLITS)
            plans[index] = PlannedTrial(
                search.recipe.name,
                setting.values,
                number,
                search.trials,
                index + 1,
                len(planned),
                known is not None,
            )
            if announce is not None:
                announce(plans[index])
            if known is None:
                yield Job(index, recipe, Path(out), splits=SEARCHED_SPLITS)
            else:
                end(index, known)

    def report(job: Job, reached: Progress) -> None:
        if progress is not None:
            progress(plans[job.number], reached)

    run_jobs(pending(), jobs, done=lambda job, outcome: end(job.number, outcome), progress=report)
    return state.result()


@dataclass
class _Running:
    """The search of one recipe, under way."""

    recipe: AnyRecipe
    dataset: Data
    grid: dict[str, tuple[Any, ...]]
    skipped: list[str]
    plan: Plan
    done: dict[int, Trial] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        return len(self.plan.settings)

    @property
    def monitor(self) -> str:
        return self.recipe.training.monitor

    def result(self) -> Search:
        training = self.recipe.training
        trials = tuple(self.done[number] for number in sorted(self.done))
        best = best_trial(trials, training.monitor_mode)
        return Search(
            recipe=self.recipe.name,
            model=self.recipe.entry().name,
            dataset=self.dataset.name,
            data_hash=self.dataset.data_hash,
            rows={name: rows_of(self.dataset)[name] for name in ("train", *SEARCHED_SPLITS)},
            monitor=training.monitor,
            monitor_mode=training.monitor_mode,
            grid=self.grid,
            skipped=tuple(self.skipped),
            combinations=self.plan.combinations,
            whole_grid=self.plan.whole,
            planned=self.trials,
            trials=trials,
            best=None if best is None else best.number,
            best_recipe=None if best is None else self._recipe_of(best),
        )

    def _recipe_of(self, trial: Trial) -> dict[str, Any]:
        own = trial.number == 1
        return recipe_values(self.recipe, {} if own else trial.settings)


@dataclass
class _State:
    """All searches, under way."""

    grid: Grid
    jobs: int
    searches: list[_Running]
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: Commit = field(default_factory=current_commit)

    def result(self) -> TuneResult:
        device = select_device(self.searches[0].recipe.training.device)
        return TuneResult(
            trials=self.grid.trials,
            seed=self.grid.seed,
            jobs=self.jobs,
            finished=self.finished,
            commit=self.commit,
            machine=current_machine(device),
            versions=current_versions(),
            searches=tuple(search.result() for search in self.searches),
        )


def _searches(recipes: Sequence[AnyRecipe], grid: Grid) -> list[_Running]:
    """What is searched for each recipe, everything checked.

    Raises:
        ValueError: no recipes, two of one name, a grid that does not fit, or no validation split.
    """
    if not recipes:
        raise ValueError("tune needs at least one recipe")
    names = [recipe.name for recipe in recipes]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"two recipes are called {', '.join(repeated)}; the results of a search go by the "
            "recipe's name: give each its own"
        )
    grids: list[tuple[dict[str, tuple[Any, ...]], list[str]]] = []
    problems: list[str] = []
    for recipe in recipes:
        try:
            grids.append(grid.for_recipe(recipe))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    datasets = {recipe.dataset: open_data(recipe) for recipe in recipes}
    for folder, dataset in datasets.items():
        held = rows_of(dataset)
        missing = [name for name in ("train", *SEARCHED_SPLITS) if name not in held]
        if missing:
            raise ValueError(
                f"{folder} has no {missing[0]} split, which a search needs; it has "
                f"{', '.join(held)}"
            )
    return [
        _Running(
            recipe,
            datasets[recipe.dataset],
            values,
            skipped,
            plan_settings(recipe, values, grid.trials, grid.seed),
        )
        for recipe, (values, skipped) in zip(recipes, grids, strict=True)
    ]


def _trial(number: int, settings: Mapping[str, Any], outcome: Outcome, monitor: str) -> Trial:
    if isinstance(outcome, ValueError):
        return Trial(number=number, settings=dict(settings), status="failed", error=str(outcome))
    record = outcome.record
    assert record.training is not None  # completed runs have one
    return Trial(
        number=number,
        settings=dict(settings),
        status="completed",
        metric=_best_metric(outcome, monitor),
        epochs=record.training.epochs,
        seconds=record.training.seconds,
        threads=record.machine.threads,
        folder=str(outcome.folder),
    )


def _best_metric(run: StoredRun, monitor: str) -> float:
    """The monitored metric at the evaluation whose weights were kept."""
    assert run.record.training is not None
    history = read_history(run.folder)
    best = history.filter(pl.col("step") == run.record.training.best_step)
    return float(best[monitor][0])
