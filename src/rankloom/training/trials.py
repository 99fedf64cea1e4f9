"""The results of a search: `tune.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from rankloom.config import Config, parse_config, read_json_values
from rankloom.runs.environment import Commit, Machine, Versions

RESULT_FILE = "tune.json"
"""Name of the results in a report folder."""


class Trial(Config):
    """One setting, and what came of it."""

    number: int
    """Place in the search, from 1; trial 1 is the recipe's own setting."""
    settings: dict[str, Any]
    """Value of every searched key."""
    status: Literal["completed", "failed"]
    """Whether the training came to its end."""
    metric: float | None = None
    """Monitored metric at the best evaluation; None when it failed."""
    epochs: int | None = None
    """Epochs begun."""
    seconds: float | None = None
    """Wall time of training and its evaluations."""
    threads: int | None = None
    """Threads that it trained with."""
    folder: str | None = None
    """Run folder."""
    error: str | None = None
    """Why it failed."""


class Search(Config):
    """The trials of one recipe."""

    recipe: str
    """Name of the recipe."""
    model: str
    """Name of its model in the catalog."""
    dataset: str
    """Name of the data set."""
    data_hash: str
    """Hash of the data set's content."""
    rows: dict[str, int]
    """Rows of each split that the search used."""
    monitor: str
    """Validation metric that decides."""
    monitor_mode: Literal["max", "min"]
    """Whether more or less of it is better."""
    grid: dict[str, tuple[Any, ...]]
    """Values of each searched key."""
    skipped: tuple[str, ...] = ()
    """Keys left out because the model does not have them."""
    combinations: int
    """Combinations of the grid."""
    whole_grid: bool
    """Whether all combinations are planned, or only as many as the budget allows."""
    planned: int
    """Trials planned, the recipe's own setting included."""
    trials: tuple[Trial, ...] = ()
    """Trials that came to an end, by number."""
    best: int | None = None
    """Number of the best trial so far; None when none is completed."""
    best_recipe: dict[str, Any] | None = None
    """Recipe with the best setting, as a recipe file holds it."""


class TuneResult(Config):
    """Searches with one budget."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    trials: int
    """Trials of each recipe; fewer where the grid is smaller."""
    seed: int
    """Seed of the order of settings, and of every trial."""
    jobs: int
    """Trials at once."""
    finished: AwareDatetime
    """End of the latest trial that is included, UTC."""
    commit: Commit
    """The source that ran."""
    machine: Machine
    """The machine; each trial states its own threads."""
    versions: Versions
    """Versions."""
    searches: tuple[Search, ...] = Field(min_length=1)
    """One per recipe, in the order given."""


def best_trial(trials: Sequence[Trial], mode: Literal["max", "min"]) -> Trial | None:
    """The completed trial with the best metric, the earlier one of equals; None: there is none."""
    sign = 1 if mode == "max" else -1
    completed = [trial for trial in trials if trial.metric is not None]
    return max(
        completed, key=lambda trial: (sign * (trial.metric or 0.0), -trial.number), default=None
    )


def read_result(path: str | Path) -> TuneResult:
    """Read tune.json, or the one in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or holds no results of a search.
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULT_FILE
    return parse_config(TuneResult, read_json_values(file), str(file))
