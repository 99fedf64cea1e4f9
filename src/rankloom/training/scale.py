"""Runs of the same recipes at several sizes.

```toml
seeds = 3        # of each size, from the recipe's own on

[grid]           # every combination is a size
"model.num_layers" = [2, 4, 8]
"model.dim" = [32, 64]

[models.dcnv2.grid]
"model.num_layers" = []
"model.dim" = []
"model.num_crosses" = [1, 2, 4, 8]
```

Keys joined by commas take the same value together.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from rankloom.catalog import ENTRIES
from rankloom.config import Config, load_config
from rankloom.data.store import Dataset
from rankloom.runs.record import StoredRun, recipe_hash
from rankloom.training.course import Progress
from rankloom.training.grid import Grid, ModelGrid, Values, changed_recipe
from rankloom.training.jobs import Job, Outcome, run_jobs
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.run_folders import find_run


class ScaleGrid(Config):
    """The sizes that recipes are trained at."""

    seeds: int = Field(3, gt=0)
    """Seeds of each size, from the recipe's own on."""
    skip_unknown: bool = False
    """Leave out `model` keys of the general grid for models that do not have them."""
    grid: Values = Field(default_factory=dict)
    """Values by dotted key, for all recipes; every combination is a size."""
    models: dict[str, ModelGrid] = Field(default_factory=dict)
    """What is different, by name of a recipe or of its model; the recipe's comes first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for own in (ModelGrid(), *self.models.values()):
            # A search checks the same of its keys and values.
            Grid(trials=1, grid={**self.grid, **{k: v for k, v in own.grid.items() if v}})
        return self

    def sizes(self, recipe: Recipe) -> tuple[list[tuple[dict[str, Any], Recipe]], list[str]]:
        """Settings and recipe of every size, and the keys skipped because the model lacks them.

        Raises:
            ValueError: the model does not have a key, or a combination is no valid recipe.
        """
        model = recipe.entry().name
        own = self.models.get(recipe.name) or self.models.get(model)
        space = Grid(
            trials=1,
            skip_unknown=self.skip_unknown,
            grid=self.grid,
            models={} if own is None else {model: own},
        )
        values, skipped = space.for_recipe(recipe)
        combinations = [
            dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
        ]
        return [(chosen, changed_recipe(recipe, chosen)) for chosen in combinations], skipped


@dataclass
class SizeRuns:
    """One size of one recipe, and its runs."""

    recipe: Recipe
    """The recipe with the values of this size."""
    settings: dict[str, Any]
    """Value of every key of the grid."""
    skipped: tuple[str, ...] = ()
    """Keys of the grid that the model does not have."""
    runs: dict[int, StoredRun] = field(default_factory=dict)
    """Finished run by seed."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why a run failed, by seed."""


@dataclass(frozen=True)
class PlannedSize:
    """One run about to begin."""

    recipe: Recipe
    """The recipe, with this run's size and seed."""
    settings: dict[str, Any]
    """Value of every key of the grid."""
    number: int
    """Place in the plan, from 1."""
    total: int
    """Runs planned."""
    recorded: bool
    """Whether a finished run of it exists already."""


def scale(
    recipes: Sequence[Recipe | str | Path],
    grid: ScaleGrid | str | Path,
    *,
    seeds: int | None = None,
    out: str | Path = "runs",
    fresh: bool = False,
    jobs: int = 1,
    announce: Callable[[PlannedSize], None] | None = None,
    progress: Callable[[PlannedSize, Progress], None] | None = None,
    finished: Callable[[PlannedSize, Outcome], None] | None = None,
) -> list[SizeRuns]:
    """Train recipes at every size of a grid with several seeds, skipping what is recorded already.

    A run counts as recorded when its recipe, data hash, seed and the library's source agree.
    Interrupted, the same call goes on: finished runs are skipped, those under way resume. A run
    whose loss is not finite, or that ends in another ValueError, counts as failed and the others
    go on; a later call tries it again.

    Args:
        recipes: recipes or their paths, each with a name of its own, all of one data set.
        grid: the sizes, or the path of their file.
        seeds: seeds of each size, in place of the grid's.
        out: folder that run folders go into.
        fresh: train again what is recorded.
        jobs: runs at once. More than one train in processes of their own with one thread each; a
            script that asks for that guards its start with `if __name__ == "__main__":`.
        announce: called before each run.
        progress: called now and then during each run.
        finished: called after each run that was trained, with the run or why it failed.

    Returns:
        All sizes with their runs, in the order of recipes, then of the grid.

    Raises:
        FileNotFoundError: a recipe, the grid or a data set does not exist.
        ValueError: a recipe or the grid is wrong, which is found before the first run.
        OSError: a file cannot be read or written, or a worker process died.
    """
    chosen = [item if isinstance(item, Recipe) else load_recipe(item) for item in recipes]
    space = grid if isinstance(grid, ScaleGrid) else load_config(ScaleGrid, grid)
    num_seeds = space.seeds if seeds is None else seeds
    if num_seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {num_seeds}")
    sizes = _sizes(chosen, space)
    dataset = _dataset(chosen)
    planned = [
        (size, size.recipe.model_copy(update={"seed": size.recipe.seed + offset}))
        for size in sizes
        for offset in range(num_seeds)
    ]
    plans: dict[int, PlannedSize] = {}

    def pending() -> Iterator[Job]:
        for index, (size, recipe) in enumerate(planned):
            known = None if fresh else find_run(recipe, dataset, Path(out))
            recorded = known is not None
            plans[index] = PlannedSize(recipe, size.settings, index + 1, len(planned), recorded)
            if announce is not None:
                announce(plans[index])
            if known is None:
                yield Job(index, recipe, Path(out), resume=not fresh)
            else:
                size.runs[recipe.seed] = known

    def done(job: Job, outcome: Outcome) -> None:
        size, recipe = planned[job.number]
        if isinstance(outcome, ValueError):
            size.failures[recipe.seed] = str(outcome)
        else:
            size.runs[recipe.seed] = outcome
        if finished is not None:
            finished(plans[job.number], outcome)

    def report(job: Job, state: Progress) -> None:
        if progress is not None:
            progress(plans[job.number], state)

    run_jobs(pending(), jobs, done=done, progress=report)
    return sizes


def size_name(settings: Mapping[str, Any]) -> str:
    """A size in a few words, such as `num_layers=4, dim=64`.

    Of a dotted key its last part stands alone where no other key of the size ends alike. Without
    settings it is the recipe's own.
    """
    if not settings:
        return "own setting"
    firsts = {key: key.partition(",")[0].strip() for key in settings}
    lasts = [first.rpartition(".")[2] for first in firsts.values()]
    return ", ".join(
        f"{last if lasts.count(last) == 1 else first.partition('.')[2]}={settings[key]}"
        for (key, first), last in zip(firsts.items(), lasts, strict=True)
    )


def _sizes(recipes: Sequence[Recipe], grid: ScaleGrid) -> list[SizeRuns]:
    """Every size of every recipe, everything checked.

    Raises:
        ValueError: no recipes, two of one name, or a grid that does not fit.
    """
    if not recipes:
        raise ValueError("scale needs at least one recipe")
    names = [recipe.name for recipe in recipes]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"two recipes are called {', '.join(repeated)}; curves go by the recipe's name: give "
            "each its own"
        )
    known = {*names, *(entry.name for entry in ENTRIES)}
    problems = [
        f"[models.{name}] is neither one of the recipes, {', '.join(names)}, nor a model of the "
        "catalog"
        for name in grid.models
        if name not in known
    ]
    sizes: list[SizeRuns] = []
    for recipe in recipes:
        try:
            found, skipped = grid.sizes(recipe)
        except ValueError as error:
            problems.append(str(error))
            continue
        hashes = [recipe_hash(changed.resolved()) for _, changed in found]
        if len(set(hashes)) < len(hashes):
            problems.append(f"{recipe.name}: two sizes of the grid are the same recipe")
        sizes += [SizeRuns(changed, chosen, tuple(skipped)) for chosen, changed in found]
    if problems:
        raise ValueError("\n".join(problems))
    return sizes


def _dataset(recipes: Sequence[Recipe]) -> Dataset:
    """The one data set of all recipes.

    Raises:
        ValueError: they have several.
    """
    datasets = {recipe.dataset: Dataset.open(recipe.dataset) for recipe in recipes}
    hashes = {dataset.data_hash for dataset in datasets.values()}
    if len(hashes) > 1:
        raise ValueError(
            f"curves are compared on one data set; the recipes name {', '.join(datasets)}"
        )
    return next(iter(datasets.values()))
