"""Runs looked into: gradients, layer inputs, depth, loops, scenarios, landscape, frequency.

Each is a measurement of finished runs on the same data; what they mean stands with the functions
that compute them (`training.gradients`, `evaluation.spectrum`, `evaluation.depth`,
`evaluation.loops`, `evaluation.generated_weights`, `evaluation.landscape`,
`evaluation.frequency`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rankloom.batch import Batch
from rankloom.data.store import StoredSplit
from rankloom.data.switch_off import SwitchOff
from rankloom.evaluation.depth import StackDepth
from rankloom.evaluation.depth_hooks import connected_stacks, measure_depth
from rankloom.evaluation.frequency import compare_by_frequency, row_frequency, training_counts
from rankloom.evaluation.generated_weights import GeneratedWeights, generated_similarity
from rankloom.evaluation.inspection import (
    FrequencyGain,
    GradientCurve,
    InspectedRun,
    Inspection,
    LayerSpectra,
)
from rankloom.evaluation.landscape import Landscape, LandscapeConfig, loss_landscape
from rankloom.evaluation.loop_hooks import LoopFindings, measure_loops
from rankloom.evaluation.module_paths import find_modules, no_such_module
from rankloom.evaluation.spectrum import Spectrum, layer_inputs, spectra
from rankloom.runs.history import GRADIENT_NORM, read_history
from rankloom.training.run import Run, score

LOOP_BATCH_SIZE = 512
"""Most rows whose states are held at a time."""


def inspect_runs(
    run: Run,
    against: Sequence[Run] = (),
    *,
    layers: Sequence[str] = (),
    rows: int = 4096,
    split: str = "test",
    frequency: str = "min",
    landscape: LandscapeConfig | None = None,
) -> Inspection:
    """Measure a run, beside others if given.

    Args:
        run: the run.
        against: runs on the same data to compare it with.
        layers: patterns over module paths (`rankloom.evaluation.module_paths`) whose inputs get
            spectra. A pattern has to fit a module of one run at least.
        rows: most rows for everything but gradients and gains, evenly spread over the split.
        split: split of everything but the gradients.
        frequency: min, mean or a categorical field: what orders rows for the gains, which are
            measured where there are other runs.
        landscape: where the loss around the weights is looked at; None: nowhere.

    Raises:
        FileNotFoundError: a run has no history, or the data set is not where the recipe says.
        ValueError: other data, an unknown split, pattern or statistic, a run given twice, rows not
            above 0, a landscape that cannot be had, or nothing to measure.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    runs = [run, *against]
    _check_data(run, against)
    labels = _labels(runs)
    named = dict(zip(labels, runs, strict=True))
    if split not in run.dataset.splits:
        known = ", ".join(run.dataset.splits)
        raise ValueError(f"no split {split!r} in {run.dataset.folder}; known: {known}")
    curves = [curve for label, one in named.items() for curve in _gradients(label, one)]
    stored = run.dataset.split(split)
    loops = _loops(named, stored, rows)
    generated = tuple(_generated(named, stored, rows))
    has_stack = bool(stored.rows and connected_stacks(run.model))
    shown = [curves, layers, against, landscape, has_stack, generated, any(map(any, loops))]
    if not any(shown):
        raise ValueError(
            f"nothing to inspect in {run.folder}: name layers or a run to compare with, train with "
            "watch_gradients, or ask for the landscape"
        )
    return Inspection(
        dataset=run.record.dataset.name,
        data_hash=run.record.dataset.data_hash,
        split=split,
        frequency=frequency,
        runs=tuple(
            InspectedRun(
                label=label,
                run_id=one.record.run_id,
                model=one.record.model,
                seed=one.record.seed,
            )
            for label, one in named.items()
        ),
        gradients=tuple(curves),
        spectra=tuple(_spectra(named, stored, layers, rows)),
        stacks=tuple(_stacks(named, stored, rows)),
        states=tuple(one for found in loops for one in found.states),
        routers=tuple(one for found in loops for one in found.routers),
        coefficients=tuple(one for found in loops for one in found.coefficients),
        generated=generated,
        landscapes=tuple(_landscapes(named, stored, rows, landscape)) if landscape else (),
        gains=tuple(_gains(named, stored, frequency)) if against else (),
    )


def _check_data(run: Run, against: Sequence[Run]) -> None:
    ours = run.record.dataset
    for other in against:
        theirs = other.record.dataset
        if theirs.data_hash != ours.data_hash:
            raise ValueError(
                f"{other.folder} was trained on other data than {run.folder} ({theirs.name} "
                f"{theirs.data_hash}, {ours.name} {ours.data_hash}): only runs on the same rows, "
                "equally encoded, can be compared"
            )


def _labels(runs: Sequence[Run]) -> list[str]:
    """The shortest names that tell the runs apart."""
    for names in (
        [run.record.model for run in runs],
        [run.record.name for run in runs],
        [run.record.run_id for run in runs],
        [str(run.folder.resolve()) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run cannot be compared with itself; name another")


def _gradients(label: str, run: Run) -> Iterator[GradientCurve]:
    history = read_history(run.folder)
    for column in history.columns:
        if column.startswith(GRADIENT_NORM):
            points = history.drop_nulls(column)
            yield GradientCurve(
                run=label,
                pattern=column.removeprefix(GRADIENT_NORM),
                step=tuple(points["step"]),
                epoch=tuple(points["epoch"]),
                norm=tuple(points[column]),
            )


def _spectra(
    runs: dict[str, Run], split: StoredSplit, layers: Sequence[str], rows: int
) -> Iterator[LayerSpectra]:
    if not layers:
        return
    if not split.rows:
        raise ValueError(f"the {split.name} split has no rows to measure spectra on")
    for pattern in layers:
        if not any(find_modules(run.model, pattern) for run in runs.values()):
            raise no_such_module(pattern, *(run.model for run in runs.values()))
    received: set[str] = set()  # patterns with at least one input
    for label, run in runs.items():
        chosen = {pattern: find_modules(run.model, pattern) for pattern in layers}
        # In the order of the model, not of the patterns.
        together = {
            path: part
            for path, part in run.model.named_modules()
            if any(path in found for found in chosen.values())
        }
        batches = _spread(run, split, rows)
        inputs = layer_inputs(run.model, together, batches, device=run.device)
        received |= {p for p, found in chosen.items() if found.keys() & inputs.keys()}
        while inputs:  # one at a time, each let go once it is measured
            path = next(iter(inputs))
            yield LayerSpectra(run=label, module=path, spectra=tuple(_measured(path, inputs)))
    for pattern in layers:
        if pattern not in received:
            raise ValueError(
                f"no module that fits {pattern!r} receives a float tensor with a row for every row "
                "of the batch; name modules inside the network"
            )


def _stacks(runs: dict[str, Run], split: StoredSplit, rows: int) -> Iterator[StackDepth]:
    if not split.rows:
        return
    for label, run in runs.items():
        batches = _spread(run, split, rows)
        yield from measure_depth(run.model, batches, run=label, device=run.device)


def _loops(runs: dict[str, Run], split: StoredSplit, rows: int) -> list[LoopFindings]:
    return [
        measure_loops(
            run.model, _spread(run, split, rows, LOOP_BATCH_SIZE), run=label, device=run.device
        )
        for label, run in runs.items()
        if split.rows
    ]


def _generated(runs: dict[str, Run], split: StoredSplit, rows: int) -> Iterator[GeneratedWeights]:
    for label, run in runs.items():
        batches = _spread(run, split, rows)
        names = split.schema.scenarios[1:]
        yield from generated_similarity(run.model, batches, names, run=label, device=run.device)


def _landscapes(
    runs: dict[str, Run], split: StoredSplit, rows: int, config: LandscapeConfig
) -> Iterator[Landscape]:
    for label, run in runs.items():
        batches = list(_spread(run, split, rows))
        try:
            yield loss_landscape(run.model, batches, config, run=label, device=run.device)
        except ValueError as error:
            raise ValueError(f"landscape of {label}: {error}") from None


def _measured(path: str, inputs: dict[str, Tensor]) -> list[Spectrum]:
    try:
        return spectra(inputs.pop(path))
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None


def _spread(
    run: Run, split: StoredSplit, rows: int, batch_size: int | None = None
) -> Iterator[Batch]:
    """At most `rows` rows, evenly spread over the split, as the run's recipe evaluates them.

    Batches differ by one row and have at most `batch_size` rows; None: the recipe's.
    """
    count = min(rows, split.rows)
    if not count:
        return
    most = run.recipe.training.evaluation_batch_size if batch_size is None else batch_size
    switch_off = SwitchOff(split.schema, run.recipe.evaluation.switched_off)
    chosen = torch.arange(count) * split.rows // count
    for part in chosen.tensor_split(-(-count // most)):
        yield switch_off(split.gather_ascending(part))


def _gains(runs: dict[str, Run], split: StoredSplit, frequency: str) -> Iterator[FrequencyGain]:
    first, *others = runs
    values = row_frequency(split, training_counts(runs[first].dataset), frequency)
    ours = score(runs[first].model, split, runs[first].recipe, runs[first].device)
    if ours.labels is None:
        raise ValueError(f"the {split.name} split has no labels to compare runs on")
    for label in others:
        run = runs[label]
        theirs = score(run.model, split, run.recipe, run.device)
        for task, known in enumerate(split.schema.labels):
            y = ours.labels[:, task].astype(np.float64)
            if ours.label_mask is not None:
                y = np.where(ours.label_mask[:, task], y, np.nan)
            deciles = compare_by_frequency(y, ours.logits[:, task], theirs.logits[:, task], values)
            yield FrequencyGain(other=label, task=known.name, deciles=tuple(deciles))
