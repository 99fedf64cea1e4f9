"""Recipes of every kind: the one place that knows which of them is trained how."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, overload

from rankloom.catalog import CATALOG
from rankloom.config import parse_config
from rankloom.data.sequence_store import SequenceData
from rankloom.data.store import Dataset
from rankloom.runs.record import read_record
from rankloom.training.course import Progress
from rankloom.training.experiment import train
from rankloom.training.model_recipe import model_name
from rankloom.training.recipe import Recipe, recipe_file_values
from rankloom.training.retrieval_experiment import train_retrieval
from rankloom.training.retrieval_recipe import RetrievalRecipe
from rankloom.training.retrieval_run import RetrievalRun
from rankloom.training.run import Run
from rankloom.training.run_folders import EVALUATED, Data

AnyRecipe = Recipe | RetrievalRecipe
"""A recipe of a model that scores rows, or of one that retrieves items."""
AnyRun = Run | RetrievalRun
"""A finished run of either."""


def load_any_recipe(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe; the family of its model says of which kind it is.

    Raises:
        FileNotFoundError: there is no such file, or no such base.
        ValueError: what is wrong, one line per problem.
    """
    return parse_recipe(recipe_file_values(path, overrides), str(path))


def parse_recipe(values: dict[str, Any], source: str) -> AnyRecipe:
    """A recipe of plain values; errors as in `load_any_recipe`."""
    name = model_name(values)
    entry = CATALOG.get(name) if isinstance(name, str) else None
    if entry is not None and entry.family == "retrieval":
        return parse_config(RetrievalRecipe, values, source)
    return parse_config(Recipe, values, source)


def open_data(recipe: AnyRecipe) -> Data:
    """The data set of a recipe.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, or of the other kind.
    """
    if isinstance(recipe, RetrievalRecipe):
        return SequenceData.open(recipe.dataset)
    return Dataset.open(recipe.dataset)


@overload
def run_recipe(
    recipe: Recipe,
    *,
    out: str | Path = ...,
    seed: int | None = ...,
    resume: bool = ...,
    splits: Collection[str] = ...,
    progress: Callable[[Progress], None] | None = ...,
) -> Run: ...


@overload
def run_recipe(
    recipe: RetrievalRecipe,
    *,
    out: str | Path = ...,
    seed: int | None = ...,
    resume: bool = ...,
    splits: Collection[str] = ...,
    progress: Callable[[Progress], None] | None = ...,
) -> RetrievalRun: ...


@overload
def run_recipe(
    recipe: AnyRecipe | str | Path,
    *,
    out: str | Path = ...,
    seed: int | None = ...,
    resume: bool = ...,
    splits: Collection[str] = ...,
    progress: Callable[[Progress], None] | None = ...,
) -> AnyRun: ...


def run_recipe(
    recipe: AnyRecipe | str | Path,
    *,
    out: str | Path = "runs",
    seed: int | None = None,
    resume: bool = True,
    splits: Collection[str] = EVALUATED,
    progress: Callable[[Progress], None] | None = None,
) -> AnyRun:
    """Train one recipe of any kind, evaluate its best weights, and write the run folder.

    Arguments, result and errors are those of `rankloom.training.experiment.train` and
    `rankloom.training.retrieval_experiment.train_retrieval`.
    """
    chosen = load_any_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if isinstance(chosen, RetrievalRecipe):
        return train_retrieval(
            chosen, out=out, seed=seed, resume=resume, splits=splits, progress=progress
        )
    return train(chosen, out=out, seed=seed, resume=resume, splits=splits, progress=progress)


def open_run(folder: str | Path, *, dataset: str | Path | None = None) -> AnyRun:
    """Open a run folder of any kind.

    Raises:
        FileNotFoundError: it holds no record (the run is not finished).
        ValueError: the record or the recipe is not readable.
    """
    if read_record(folder).family == "retrieval":
        return RetrievalRun.open(folder, dataset=dataset)
    return Run.open(folder, dataset=dataset)
