"""`inspect.json`: what was measured of some runs, and how it is read and written.

`rankloom.training.inspection` fills it from run folders, `rankloom.report.inspection` shows it.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from rankloom.config import Config, parse_config, read_json_values
from rankloom.evaluation.depth import StackDepth
from rankloom.evaluation.frequency import Decile
from rankloom.evaluation.generated_weights import GeneratedWeights
from rankloom.evaluation.landscape import Landscape
from rankloom.evaluation.loops import RouterUse, StateSimilarity, StreamCoefficients
from rankloom.evaluation.spectrum import Spectrum
from rankloom.runs.atomic import write_text
from rankloom.runs.record import Number

INSPECTION_FILE = "inspect.json"
"""Name of an inspection in its folder."""


class InspectedRun(Config):
    """One of the runs."""

    label: str
    """What it is called here, unique among the runs."""
    run_id: str
    """Its run id."""
    model: str
    """Name of its model."""
    seed: int
    """Its seed."""


class GradientCurve(Config):
    """Gradient norm of one group of modules over training."""

    run: str
    """Label of the run."""
    pattern: str
    """Pattern that names the modules."""
    step: tuple[int, ...]
    """Steps of the evaluations."""
    epoch: tuple[float, ...]
    """The same in epochs."""
    norm: tuple[Number, ...]
    """Root mean square of the norm per step since the evaluation before."""


class LayerSpectra(Config):
    """Spectra of what one module of one run receives."""

    run: str
    """Label of the run."""
    module: str
    """Path of the module."""
    spectra: tuple[Spectrum, ...]
    """By row, and by token where there are tokens."""


class FrequencyGain(Config):
    """The inspected run against another, by feature frequency."""

    other: str
    """Label of the other run."""
    task: str
    """Task."""
    deciles: tuple[Decile, ...]
    """Rarest rows first."""


class Inspection(Config):
    """`inspect.json`: everything measured."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    dataset: str
    """Name of the data set."""
    data_hash: str
    """Its hash, which all runs share."""
    split: str
    """Split that everything but the gradients is of."""
    frequency: str
    """Statistic that orders the rows: min, mean or a field."""
    runs: tuple[InspectedRun, ...] = Field(min_length=1)
    """The inspected run, then those it is compared with."""
    gradients: tuple[GradientCurve, ...] = ()
    """Curves of the runs that watched gradients."""
    spectra: tuple[LayerSpectra, ...] = ()
    """Layers by run."""
    stacks: tuple[StackDepth, ...] = ()
    """Stacks of token layers by run."""
    states: tuple[StateSimilarity, ...] = ()
    """Loops and lists of token layers by run: how alike their states are."""
    routers: tuple[RouterUse, ...] = ()
    """Routers of experts by run."""
    coefficients: tuple[StreamCoefficients, ...] = ()
    """Coefficients of hyper-connections by run."""
    generated: tuple[GeneratedWeights, ...] = ()
    """Layers with generated weights by run: how alike they are between scenarios."""
    landscapes: tuple[Landscape, ...] = ()
    """The loss around the weights, by run; empty where it was not asked for."""
    gains: tuple[FrequencyGain, ...] = ()
    """One per other run and task."""


def write_inspection(folder: str | Path, inspection: Inspection) -> Path:
    """Write `inspect.json` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / INSPECTION_FILE
    values = inspection.model_dump(mode="json")
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def read_inspection(path: str | Path) -> Inspection:
    """Read an `inspect.json`, or that of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or no inspection.
    """
    given = Path(path)
    file = given / INSPECTION_FILE if given.is_dir() else given
    return parse_config(Inspection, read_json_values(file), str(file))
