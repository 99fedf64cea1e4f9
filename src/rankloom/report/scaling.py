"""Scaling curves of several models on one data set, from their runs: `scaling.json`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from rankloom.config import Config, parse_config, read_json_values
from rankloom.evaluation.equal_compute import EqualCompute, NotReached, equal_compute
from rankloom.evaluation.scaling import NoCurve, ScalingCurve, ScalingFit, fit_scaling
from rankloom.report.rows import HIGHER_IS_BETTER, Published, higher_is_better
from rankloom.report.seeds import Summary, summarise
from rankloom.runs.atomic import write_text
from rankloom.runs.environment import Commit, Machine, Versions
from rankloom.runs.record import DatasetFacts, Record, recipe_hash
from rankloom.training.scale import SizeRuns, size_name

SCALING_FILE = "scaling.json"
"""Name of the results in a report folder."""


class SizeRow(Config):
    """One size of a model: a point of its curve."""

    size: str
    """Depth and width in a few words, unique within the model."""
    settings: dict[str, Any]
    """Value of every key of the grid."""
    recipe_hash: str
    """Hash of the recipe at this size."""
    flops_per_row: float | None
    """Floating-point operations of scoring one row; None when no run is finished."""
    dense_parameters: int | None
    """Parameters outside the embedding tables."""
    embedding_parameters: int | None
    """Parameters of the embedding tables."""
    metric: Summary
    """The metric over the seeds of finished runs."""
    failures: dict[int, str] = Field(default_factory=dict)
    """Why a run failed, by seed."""


class EqualRow(Config):
    """The compute that the reference needs for what a model has at one size."""

    size: str
    """The model's size."""
    outcome: Annotated[EqualCompute | NotReached, Field(discriminator="kind")]
    """The compute, or why there is none."""
    nearest: str | None = None
    """The reference's size whose compute is nearest to it."""


class ModelScaling(Config):
    """One recipe at all its sizes."""

    name: str
    """Name of the recipe."""
    model: str
    """Name of its model in the catalog."""
    skipped: tuple[str, ...] = ()
    """Keys of the grid that the model does not have."""
    sizes: tuple[SizeRow, ...]
    """In the order of the grid."""
    fit: Annotated[ScalingCurve | NoCurve, Field(discriminator="kind")]
    """The scaling law, or why there is none."""
    line: tuple[float, float, float] | None
    """alpha, beta and gamma of the fitted line, which is there without a law too when alpha or
    gamma ended at a bound: good for reading between the points, and for nothing else."""
    equal: tuple[EqualRow, ...] = ()
    """Comparison of each size with the reference; empty for the reference."""
    published: Published | None = None
    """What the paper claims."""


class Scaling(Config):
    """The curves of several models on one data set."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    dataset: DatasetFacts
    """The data."""
    split: str
    """Split of the metric."""
    metric: str
    """The metric."""
    higher_is_better: bool
    """Its direction."""
    reference: str
    """Recipe that the others are compared with."""
    samples: int
    """Bootstrap draws."""
    level: float
    """Confidence level of intervals."""
    commit: Commit
    """The source of the first run."""
    source_hashes: tuple[str, ...]
    """Every source that a run was made by; several when it changed while the grid was trained."""
    machine: Machine
    """The machine of the first run."""
    versions: Versions
    """Versions."""
    models: tuple[ModelScaling, ...] = Field(min_length=1)
    """In the order given."""


def build_scaling(
    sizes: Sequence[SizeRuns],
    *,
    metric: str = "auc",
    split: str = "test",
    reference: str | None = None,
    published: Mapping[str, Published] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scaling:
    """Fit every recipe's curve, and compare each size with a reference.

    Args:
        sizes: sizes with their runs, as `scale` gives them.
        metric: metric of the curves, such as auc or log_loss.
        split: split of the metric.
        reference: recipe or model to compare with; None: the first recipe.
        published: what papers claim, by recipe or model name.
        samples: bootstrap draws.
        level: confidence level of intervals.
        seed: seed of the draws.

    Raises:
        ValueError: no finished run, a metric that has no direction or that no run has, or an
            unknown reference.
    """
    direction = higher_is_better(metric)
    if direction is None:
        raise ValueError(
            f"{metric} has no better and worse; a curve takes {', '.join(HIGHER_IS_BETTER)}, "
            "of all rows or of one task"
        )
    records = [run.record for size in sizes for run in size.runs.values()]
    _check_metric(sizes, records, split, metric)
    by_name: dict[str, list[SizeRuns]] = {}
    for size in sizes:
        by_name.setdefault(size.recipe.name, []).append(size)
    models_of = {name: group[0].recipe.entry().name for name, group in by_name.items()}
    compared = _reference(models_of, reference)
    rows = {
        name: tuple(_size_row(size, split, metric) for size in group)
        for name, group in by_name.items()
    }
    fits = {
        name: fit_scaling(
            *_points(found), higher_is_better=direction, samples=samples, level=level, seed=seed
        )
        for name, found in rows.items()
    }
    claims = published or {}
    return Scaling(
        dataset=records[0].dataset,
        split=split,
        metric=metric,
        higher_is_better=direction,
        reference=compared,
        samples=samples,
        level=level,
        commit=records[0].commit,
        source_hashes=tuple(dict.fromkeys(record.commit.source_hash for record in records)),
        machine=records[0].machine,
        versions=records[0].versions,
        models=tuple(
            ModelScaling(
                name=name,
                model=models_of[name],
                skipped=group[0].skipped,
                sizes=rows[name],
                fit=fits[name].result,
                line=_line(fits[name]),
                equal=()
                if name == compared
                else _equal_rows(rows[name], rows[compared], fits[compared], seed),
                published=claims.get(name) or claims.get(models_of[name]),
            )
            for name, group in by_name.items()
        ),
    )


def write_json(folder: str | Path, scaling: Scaling) -> Path:
    """Write scaling.json in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / SCALING_FILE
    values = scaling.model_dump(mode="json")
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def read_scaling(path: str | Path) -> Scaling:
    """Read scaling.json, or the one in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or holds no scaling curves.
    """
    file = Path(path)
    if file.is_dir():
        file = file / SCALING_FILE
    return parse_config(Scaling, read_json_values(file), str(file))


def _check_metric(
    sizes: Sequence[SizeRuns], records: Sequence[Record], split: str, metric: str
) -> None:
    """Whether there is anything to fit."""
    if not records:
        reasons = {reason for size in sizes for reason in size.failures.values()}
        raise ValueError(f"no finished run: {'; '.join(sorted(reasons)) or 'nothing was trained'}")
    held = sorted({name for record in records for name in record.metrics.get(split, {})})
    if metric not in held:
        there = ", ".join(held) or "nothing on that split"
        raise ValueError(f"no run has {metric} on the {split} split; there is {there}")


def _reference(models_of: Mapping[str, str], reference: str | None) -> str:
    """Name of the recipe that the others are compared with."""
    found = [name for name in models_of if reference in (None, name)]
    found = found or [name for name, model in models_of.items() if model == reference]
    if not found or (len(found) > 1 and reference is not None):
        raise ValueError(
            f"reference {reference} is {'several' if found else 'none'} of the recipes; there are "
            f"{', '.join(f'{name} (model {model})' for name, model in models_of.items())}"
        )
    return found[0]


def _size_row(size: SizeRuns, split: str, metric: str) -> SizeRow:
    records = [run.record for run in size.runs.values()]
    values = {r.seed: float(r.metrics.get(split, {}).get(metric, math.nan)) for r in records}
    parameters = [_cost(records, f"{kind}_parameters") for kind in ("dense", "embedding")]
    dense, embedding = (None if value is None else int(value) for value in parameters)
    return SizeRow(
        size=size_name(size.settings),
        settings=size.settings,
        recipe_hash=recipe_hash(size.recipe.resolved()),
        flops_per_row=_cost(records, "flops_per_row"),
        dense_parameters=dense,
        embedding_parameters=embedding,
        metric=summarise(values),
        failures=size.failures,
    )


def _cost(records: Sequence[Record], key: str) -> float | None:
    values = [record.cost[key] for record in records if key in record.cost]
    return median(values) if values else None


def _values(row: SizeRow) -> list[float]:
    """The metric of the runs in which it is defined."""
    return [value for value in row.metric.values.values() if not math.isnan(value)]


def _points(rows: Sequence[SizeRow]) -> tuple[list[float], list[list[float]]]:
    """Compute and values of the sizes that have both."""
    kept = [(row.flops_per_row, _values(row)) for row in rows if row.flops_per_row and _values(row)]
    return [compute for compute, _ in kept if compute], [values for _, values in kept]


def _line(fit: ScalingFit) -> tuple[float, float, float] | None:
    if fit.parameters is None:
        return None
    alpha, beta, gamma = map(float, fit.parameters)
    return alpha, beta, gamma


def _equal_rows(
    ours: Sequence[SizeRow], theirs: Sequence[SizeRow], reference: ScalingFit, seed: int
) -> tuple[EqualRow, ...]:
    rows = []
    for row in ours:
        values = _values(row)
        if not row.flops_per_row or not values:
            continue
        outcome = equal_compute(row.flops_per_row, values, reference, seed=seed)
        nearest = None
        if isinstance(outcome, EqualCompute):
            away = {
                other.size: abs(math.log(other.flops_per_row / outcome.compute))
                for other in theirs
                if other.flops_per_row and _values(other)
            }
            nearest = min(away, key=away.__getitem__)
        rows.append(EqualRow(size=row.size, outcome=outcome, nearest=nearest))
    return tuple(rows)
