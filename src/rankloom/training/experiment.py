"""From a recipe to a finished run folder.

A run folder holds `recipe.toml`, `model.safetensors`, `metrics.parquet`, `record.json` and, while
training is under way, `checkpoint/`. The record is written last: a folder without one is not
finished, and training the same recipe into it goes on from its checkpoint.
"""

import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rankloom.config import to_toml
from rankloom.data.store import Dataset
from rankloom.data.switch_off import SwitchOff
from rankloom.evaluation.by_scenario import split_summary
from rankloom.evaluation.cost import measure_cost
from rankloom.evaluation.protocol import EvaluationConfig, evaluate
from rankloom.runs.atomic import replacing
from rankloom.runs.record import (
    describe_dataset,
    write_record,
)
from rankloom.training.batches import TrainingBatches, check_settings
from rankloom.training.course import Progress
from rankloom.training.loop import TrainingResult, select_device
from rankloom.training.loop import train as run_loop
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.run import MODEL_FILE, RECIPE_FILE, Run, score
from rankloom.training.run_folders import (
    CHECKPOINT_FOLDER,
    EVALUATED,
    Stopwatch,
    close_run,
    evaluated_splits,
    find_run,
    rows_of,
    run_folder,
)

COST_ROWS = 256
"""Rows of the batch that operations are counted on."""


def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path = "runs",
    seed: int | None = None,
    resume: bool = True,
    splits: Collection[str] = EVALUATED,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train one recipe, evaluate its best weights, and write the run folder.

    Args:
        recipe: a recipe or the path of one.
        out: folder that run folders go into, as `<dataset>/<recipe>-<hash>-s<seed>`.
        seed: replaces the recipe's seed.
        resume: go on from a checkpoint in the run folder; False starts anew.
        splits: what the trained model is evaluated on, of valid and test. A search leaves out
            the test split.
        progress: called now and then with the state of the training.

    Returns:
        The finished run. A folder that already holds the same run, made by the same source from
        the same data, is returned without training (unless `resume` is False); splits that it
        was not evaluated on are evaluated and added to its record.

    Raises:
        FileNotFoundError: there is no such recipe or data set.
        ValueError: the recipe, the data set, or the training went wrong, and how.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    dataset = Dataset.open(chosen.dataset)
    _check(chosen, dataset)
    folder = run_folder(chosen, dataset, Path(out))
    if resume:
        finished = find_run(chosen, dataset, folder, splits=())
        if finished is not None:
            return _complete(Run.open(finished.folder, dataset=dataset), splits)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(to_toml(chosen), encoding="utf-8")
    device = select_device(chosen.training.device)

    watch = Stopwatch.start()
    torch.manual_seed(chosen.seed)
    model = chosen.entry().build(chosen.settings(), dataset.schema).to(device)
    result = _fit(model, chosen, dataset, device, folder / CHECKPOINT_FOLDER, resume, progress)
    with replacing(folder / MODEL_FILE) as part:
        save_file(model.state_dict(), part)

    metrics: dict[str, dict[str, float]] = {}
    scenarios: dict[str, dict[str, dict[str, int | float]]] = {}
    cost: dict[str, int | float] = _cost(model, chosen, dataset)
    for name in evaluated_splits(dataset, splits):
        start = time.perf_counter()
        predictions = score(model, dataset.split(name), chosen, device)
        seconds = time.perf_counter() - start
        evaluation = evaluate(predictions, dataset.schema, chosen.evaluation)
        metrics[name], scenarios[name] = evaluation.metrics, evaluation.scenarios
        cost["inference_rows_per_second"] = dataset.split(name).rows / seconds
    facts = describe_dataset(dataset.name, dataset.data_hash, rows_of(dataset), dataset.schema)
    close_run(
        folder,
        chosen,
        facts,
        result,
        watch,
        device=device,
        metrics=metrics,
        scenarios=scenarios,
        cost=cost,
    )
    return Run.open(folder, dataset=dataset)


def _complete(run: Run, splits: Collection[str]) -> Run:
    """The run, with the metrics of splits that its record lacks."""
    record = run.record
    missing = [name for name in evaluated_splits(run.dataset, splits) if name not in record.metrics]
    if not missing:
        return run
    found = {name: run.evaluate(name) for name in missing}
    metrics = record.metrics | {name: result.metrics for name, result in found.items()}
    tables = {name: result.scenarios for name, result in found.items() if result.scenarios}
    completed = record.model_copy(
        update={"metrics": metrics, "scenarios": record.scenarios | tables}
    )
    write_record(run.folder, completed)
    return Run.open(run.folder, dataset=run.dataset)


def _fit(
    model: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    checkpoint: Path,
    resume: bool,
    progress: Callable[[Progress], None] | None,
) -> TrainingResult:
    """Run the loop with validation on the `valid` split."""
    monitored, over_scenarios = split_summary(recipe.training.monitor)
    names = dict.fromkeys([*recipe.evaluation.metrics, monitored.partition("/")[0]])
    wanted = EvaluationConfig(
        **recipe.evaluation.model_dump(exclude={"metrics", "per_scenario"}),
        metrics=tuple(names),
        per_scenario=bool(over_scenarios),
    )

    def validate(current: nn.Module) -> dict[str, float]:
        predictions = score(current, dataset.split("valid"), recipe, device)
        return evaluate(predictions, dataset.schema, wanted).metrics

    loader = TrainingBatches(
        dataset.split("train"), recipe.training, seed=recipe.seed, device=device
    )
    return run_loop(
        model,
        loader,
        recipe.training,
        evaluate=validate if "valid" in dataset.splits else None,
        folder=checkpoint,
        seed=recipe.seed,
        resume=resume,
        progress=progress,
        fingerprint=dataset.data_hash,
    )


def _cost(model: nn.Module, recipe: Recipe, dataset: Dataset) -> dict[str, int | float]:
    """Operations, bytes and parameters of scoring a row, at the recipe's precision."""
    split = dataset.split("train")
    batch = split.slice(0, min(COST_ROWS, split.rows))
    cost = measure_cost(model, batch, precision=recipe.training.precision)
    return cost.model_dump(exclude={"precision"}, exclude_none=True)


def _check(recipe: Recipe, dataset: Dataset) -> None:
    """Find before the first step what of the recipe does not fit the data set."""
    if "train" not in dataset.splits:
        raise ValueError(f"{dataset.folder} has no train split; it has {', '.join(dataset.splits)}")
    if recipe.training.batch_size > dataset.split("train").rows:
        rows = dataset.split("train").rows
        raise ValueError(
            f"batch_size {recipe.training.batch_size} is more than the {rows} training rows; "
            f"set training.batch_size to at most {rows}"
        )
    check_settings(dataset.schema, recipe.training)
    SwitchOff(dataset.schema, recipe.evaluation.switched_off)
