"""Many recipes, many seeds: every run that is not recorded yet."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankloom.runs.record import StoredRun, recipe_hash
from rankloom.training.course import Progress
from rankloom.training.jobs import Job, Outcome, run_jobs
from rankloom.training.recipes import AnyRecipe, load_any_recipe, open_data
from rankloom.training.run_folders import find_run


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    recipe: AnyRecipe
    """The recipe, with this run's seed."""
    number: int
    """Place in the plan, from 1."""
    total: int
    """Runs planned."""
    recorded: bool
    """Whether a finished run of it exists already."""


def compare(
    recipes: Sequence[AnyRecipe | str | Path],
    *,
    seeds: int | Sequence[int],
    out: str | Path = "runs",
    fresh: bool = False,
    jobs: int = 1,
    announce: Callable[[PlannedRun], None] | None = None,
    progress: Callable[[PlannedRun, Progress], None] | None = None,
) -> list[StoredRun]:
    """Train recipes with several seeds each, skipping what is recorded already.

    A run counts as recorded when its recipe, data hash, seed and the library's source agree.
    Interrupted, the same call goes on: finished runs are skipped, those under way resume.

    Args:
        recipes: recipes or their paths.
        seeds: how many seeds, counted from each recipe's own, or the seeds themselves.
        out: folder that run folders go into.
        fresh: train again what is recorded.
        jobs: runs at once. More than one train in processes of their own with one thread each; a
            script that asks for that guards its start with `if __name__ == "__main__":`.
        announce: called before each run.
        progress: called now and then during each run.

    Returns:
        All runs, in the order of recipes, then seeds.

    Raises:
        FileNotFoundError: a recipe or data set does not exist.
        ValueError: a recipe is wrong (found before the first run), or a training failed.
        OSError: a file cannot be read or written, or a worker process died.
    """
    chosen = [load_any_recipe(item) if isinstance(item, str | Path) else item for item in recipes]
    if not chosen:
        raise ValueError("compare needs at least one recipe")
    planned = [
        recipe.model_copy(update={"seed": seed})
        for recipe in chosen
        for seed in _seeds_of(recipe, seeds)
    ]
    datasets = {recipe.dataset: open_data(recipe) for recipe in chosen}
    keys = [
        (recipe_hash(recipe.resolved()), datasets[recipe.dataset].data_hash, recipe.seed)
        for recipe in planned
    ]
    plans: dict[int, PlannedRun] = {}
    runs: dict[int, StoredRun] = {}

    def pending() -> Iterator[Job]:
        for index, recipe in enumerate(planned):
            repeated = keys.index(keys[index]) < index  # two recipes that differ in name only
            if not fresh and not repeated:
                known = find_run(recipe, datasets[recipe.dataset], Path(out))
                if known is not None:
                    runs[index] = known
            recorded = repeated or index in runs
            plans[index] = PlannedRun(recipe, index + 1, len(planned), recorded)
            if announce is not None:
                announce(plans[index])
            if not recorded:
                yield Job(index, recipe, Path(out), resume=not fresh)

    def done(job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, ValueError):
            raise outcome
        runs[job.number] = outcome

    def report(job: Job, state: Progress) -> None:
        if progress is not None:
            progress(plans[job.number], state)

    run_jobs(pending(), jobs, done=done, progress=report)
    return [runs[keys.index(key)] for key in keys]


def _seeds_of(recipe: AnyRecipe, seeds: int | Sequence[int]) -> list[int]:
    if not isinstance(seeds, int):
        return list(seeds)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")
    return [recipe.seed + offset for offset in range(seeds)]
