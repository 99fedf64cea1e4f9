"""`depths.json`: what a run's depths, oracles and policies give, and how it is read and written.

`rankloom.training.depths` fills it from a run folder, `rankloom.report.depths` shows it.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from rankloom.config import Config, parse_config, read_json_values
from rankloom.evaluation.depth_cost import DepthCosts
from rankloom.evaluation.depth_policy import Policy
from rankloom.evaluation.oracle_figures import TaskOracle
from rankloom.runs.atomic import write_text
from rankloom.runs.record import Number

DEPTHS_FILE = "depths.json"
"""Name of the figures in their folder."""


class DepthPoint(Config):
    """One way to predict, on the rows of the split."""

    name: str
    """What it is, unique among the points."""
    family: str
    """Points that one line of a chart joins."""
    flops_per_row: float
    """Mean operations per row."""
    mean_depth: float
    """Mean depth at which rows stop; the shallowest is 0."""
    metrics: dict[str, Number]
    """Metrics as `evaluate` names them."""
    gap_captured: Number
    """(AUC - AUC of the reference) / (AUC of the oracle - AUC of the reference)."""
    auc_difference: Number
    """AUC less that of the reference."""
    auc_low: Number
    """Lower end of DeLong's 95% interval of it; NaN with several tasks, or with row weights."""
    auc_high: Number
    """Upper end."""
    p_adjusted: Number
    """DeLong's test, Holm's correction over all points; NaN where there is no interval."""
    policy: Policy | None = None
    """What predicts so, for serving; none for a fixed depth."""


class DepthFigures(Config):
    """`depths.json`: everything measured."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    run_id: str
    """Run id."""
    model: str
    """Name of the model."""
    seed: int
    """Seed of the run."""
    dataset: str
    """Name of the data set."""
    data_hash: str
    """Its hash."""
    split: str
    """Split that is reported."""
    fitted_on: str
    """Split that thresholds, units and weights were fitted on, and the reference chosen."""
    rows: int
    """Rows of the reported split."""
    reference: str
    """Name of the fixed depth with the best AUC on the rows that policies were fitted on."""
    costs: DepthCosts
    """Operations of every depth."""
    oracle: dict[str, Number]
    """Metrics of the oracle over all depths."""
    tasks: tuple[TaskOracle, ...] = Field(min_length=1)
    """Oracles by task."""
    points: tuple[DepthPoint, ...] = Field(min_length=1)
    """Fixed depths first, then policies."""
    draws: int
    """Draws of the noise."""


def write_depths(folder: str | Path, figures: DepthFigures) -> Path:
    """Write `depths.json` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / DEPTHS_FILE
    values = figures.model_dump(mode="json")
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def read_depths(path: str | Path) -> DepthFigures:
    """Read a `depths.json`, or that of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or holds no such figures.
    """
    given = Path(path)
    file = given / DEPTHS_FILE if given.is_dir() else given
    return parse_config(DepthFigures, read_json_values(file), str(file))
