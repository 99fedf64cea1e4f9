"""What runs of all recipes share: where they go, whether they are there, what a record says."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from rankloom.data.sequence_store import SequenceData
from rankloom.data.store import Dataset
from rankloom.runs.environment import current_commit
from rankloom.runs.record import StoredRun, TrainingSummary, find_completed, recipe_hash
from rankloom.training.config import TrainingConfig
from rankloom.training.course import TrainingResult

CHECKPOINT_FOLDER = "checkpoint"
"""Folder of the checkpoint inside a run folder that is under way."""
EVALUATED = ("valid", "test")
"""Splits that a run is evaluated on, as far as its data set has them."""

Data = Dataset | SequenceData
"""What a recipe is trained on: rows of a table, or sequences of items."""


class RunRecipe(Protocol):
    """What the place of a run depends on."""

    @property
    def name(self) -> str:
        """Name of the recipe."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default written out."""


def run_folder(recipe: RunRecipe, data: Data, out: Path) -> Path:
    """Where a run of this recipe on this data goes."""
    short = recipe_hash(recipe.resolved())[:8]
    return out / data.name / f"{recipe.name}-{short}-s{recipe.seed}"


def find_run(
    recipe: RunRecipe, data: Data, root: Path, *, splits: Collection[str] = EVALUATED
) -> StoredRun | None:
    """A finished run of this recipe on this data by this source below `root`, if there is one.

    The number of threads does not count: it moves a result by rounding only, and the record
    states it. A run that lacks metrics of one of `splits` (as far as the data set has it) is not
    taken.
    """
    return find_completed(
        root,
        recipe_hash(recipe.resolved()),
        data.data_hash,
        recipe.seed,
        current_commit(),
        splits=evaluated_splits(data, splits),
    )


def evaluated_splits(data: Data, splits: Collection[str]) -> list[str]:
    """Those of `splits` that the data set has and a run is evaluated on, in order."""
    held = rows_of(data)
    return [name for name in EVALUATED if name in splits and name in held]


def rows_of(data: Data) -> dict[str, int]:
    """Rows of each split; of sequences its users, those that have something held out."""
    if isinstance(data, Dataset):
        return {name: data.split(name).rows for name in data.splits}
    held_out = int((data.histories.lengths >= 3).sum())
    return {"train": data.histories.num_users, "valid": held_out, "test": held_out}


def summarise_training(result: TrainingResult, config: TrainingConfig) -> TrainingSummary:
    """How a training went, for the record."""
    return TrainingSummary(
        epochs=result.epochs,
        steps=result.steps,
        best_step=result.best_step,
        stopped=result.stopped,
        seconds=result.seconds,
        rows_per_second=result.rows_per_second,
        table_optimizer=result.table_optimizer,
        shuffle_order=result.shuffle_order,
        precision=config.precision,
        compile=config.compile,
        resumed=result.resumed,
    )
