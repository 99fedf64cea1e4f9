"""What runs of all recipes share: where they go, whether they are there, what a record says."""

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import torch

from rankloom.data.sequence_store import SequenceData
from rankloom.data.store import Dataset
from rankloom.runs.environment import current_commit, current_machine, current_versions
from rankloom.runs.history import write_history
from rankloom.runs.record import (
    DatasetFacts,
    Record,
    StoredRun,
    TrainingSummary,
    find_completed,
    recipe_hash,
    write_record,
)
from rankloom.training.config import TrainingConfig
from rankloom.training.course import TrainingResult
from rankloom.training.model_recipe import ModelRecipe

CHECKPOINT_FOLDER = "checkpoint"
"""Folder of the checkpoint inside a run folder that is under way."""
EVALUATED = ("valid", "test")
"""Splits that a run is evaluated on, as far as its data set has them."""

Data = Dataset | SequenceData
"""What a recipe is trained on: rows of a table, or sequences of items."""


@dataclass(frozen=True)
class Stopwatch:
    """When something began."""

    started: datetime
    """In UTC."""
    clock: float
    """Of `time.perf_counter`."""

    @classmethod
    def start(cls) -> Self:
        """One that begins now."""
        return cls(datetime.now(UTC), time.perf_counter())


def run_folder(recipe: ModelRecipe, data: Data, out: Path) -> Path:
    """Where a run of this recipe on this data goes."""
    short = recipe_hash(recipe.resolved())[:8]
    return out / data.name / f"{recipe.name}-{short}-s{recipe.seed}"


def find_run(
    recipe: ModelRecipe, data: Data, root: Path, *, splits: Collection[str] = EVALUATED
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


def close_run(
    folder: Path,
    recipe: ModelRecipe,
    dataset: DatasetFacts,
    result: TrainingResult,
    watch: Stopwatch,
    *,
    device: torch.device,
    metrics: dict[str, dict[str, float]],
    scenarios: dict[str, dict[str, dict[str, int | float]]],
    cost: dict[str, int | float],
) -> None:
    """Write a run's history and, last of all, its record; its checkpoint goes.

    Args:
        folder: the run folder, which holds recipe and weights.
        recipe: the recipe.
        dataset: facts of its data set.
        result: how the training went.
        watch: started with the run.
        device: where the model ran.
        metrics: by split.
        scenarios: figures by split and scenario; splits without any are left out.
        cost: what the model costs.

    Raises:
        OSError: the folder cannot be written.
    """
    entry, resolved = recipe.entry(), recipe.resolved()
    record = Record(
        run_id=folder.name,
        name=recipe.name,
        model=entry.name,
        family=entry.family,
        seed=recipe.seed,
        recipe=resolved,
        recipe_hash=recipe_hash(resolved),
        dataset=dataset,
        commit=current_commit(),
        started=watch.started,
        finished=datetime.now(UTC),
        seconds=time.perf_counter() - watch.clock,
        machine=current_machine(device),
        versions=current_versions(),
        training=_summarise(result, recipe.training),
        metrics=metrics,
        scenarios={name: table for name, table in scenarios.items() if table},
        cost=cost,
    )
    write_history(folder, result.history)
    write_record(folder, record)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def _summarise(result: TrainingResult, config: TrainingConfig) -> TrainingSummary:
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
