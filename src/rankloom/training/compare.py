"""Many recipes, many seeds: every run that is not recorded yet, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankloom.data.store import Dataset
from rankloom.runs.record import StoredRun
from rankloom.training.course import Progress
from rankloom.training.experiment import find_run, train
from rankloom.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    recipe: Recipe
    """The recipe, with this run's seed."""
    number: int
    """Place in the plan, from 1."""
    total: int
    """Runs planned."""
    recorded: bool
    """Whether a finished run of it exists already."""


def compare(
    recipes: Sequence[Recipe | str | Path],
    *,
    seeds: int | Sequence[int],
    out: str | Path = "runs",
    fresh: bool = False,
    announce: Callable[[PlannedRun], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[StoredRun]:
    """Train recipes with several seeds each, skipping what is recorded already.

    A run counts as recorded when its recipe, data hash, seed and the library's source agree.
    Interrupted, the same call goes on: finished runs are skipped, the current one resumes.

    Args:
        recipes: recipes or their paths.
        seeds: how many seeds, counted from each recipe's own, or the seeds themselves.
        out: folder that run folders go into.
        fresh: train again what is recorded.
        announce: called before each run.
        progress: called now and then during each run.

    Returns:
        All runs, in the order of recipes, then seeds.

    Raises:
        FileNotFoundError: a recipe or data set does not exist.
        ValueError: a recipe is wrong (found before the first run), or a training failed.
    """
    chosen = [item if isinstance(item, Recipe) else load_recipe(item) for item in recipes]
    if not chosen:
        raise ValueError("compare needs at least one recipe")
    planned = [
        recipe.model_copy(update={"seed": seed})
        for recipe in chosen
        for seed in _seeds_of(recipe, seeds)
    ]
    datasets = {recipe.dataset: Dataset.open(recipe.dataset) for recipe in chosen}
    runs: list[StoredRun] = []
    for number, recipe in enumerate(planned, start=1):
        known = None if fresh else find_run(recipe, datasets[recipe.dataset], Path(out))
        if announce is not None:
            announce(PlannedRun(recipe, number, len(planned), known is not None))
        if known is None:
            run = train(recipe, out=out, resume=not fresh, progress=progress)
            known = StoredRun(run.folder, run.record)
        runs.append(known)
    return runs


def _seeds_of(recipe: Recipe, seeds: int | Sequence[int]) -> list[int]:
    if not isinstance(seeds, int):
        return list(seeds)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")
    return [recipe.seed + offset for offset in range(seeds)]
