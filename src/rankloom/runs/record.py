"""What ran, on what, with which result: `record.json` of a run folder.

Reports are generated from records and from nothing else. In Python a number that is undefined (an
AUC over one class) is NaN; JSON has no NaN, so there it is `null`, and `null` is read as NaN.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, PlainSerializer

from rankloom.config import Config, parse_config, read_json_values
from rankloom.runs.atomic import write_text
from rankloom.runs.environment import Commit, Machine, Versions
from rankloom.schema import Schema

FORMAT_VERSION = 1
"""Version of the record's layout; another one is refused when read."""
RECORD_FILE = "record.json"
"""Name of the record in a run folder."""
NOT_IN_HASH = ("name", "seed", "dataset")
"""Top-level recipe keys that `recipe_hash` leaves out: a label, and what a record states itself."""


def _nan_from_null(value: object) -> object:
    return math.nan if value is None else value


def _null_from_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[
    float,
    BeforeValidator(_nan_from_null),
    PlainSerializer(_null_from_nan, return_type=float | None, when_used="json"),
]
"""A float whose NaN is `null` in JSON. An infinity becomes `null`, and so NaN, too."""


def _plain(value: Any) -> Any:
    """A recipe value as JSON can hold it; infinities as text, which a float field reads again."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"a recipe holds tables, lists, text, numbers and booleans; got {type(value).__name__}"
    )


class DatasetFacts(Config):
    """The data set of a run, in numbers."""

    name: str
    """Its name."""
    data_hash: str
    """Hash of its content; equal hashes mean equal rows, encoded equally."""
    rows: dict[str, int]
    """Rows of each split; of sequences the users, in valid and test those with a held-out item."""
    items: int = 0
    """Items of the catalogue, where the data are sequences of items."""
    interactions: int = 0
    """Items of all sequences together."""
    categorical: int = 0
    """Categorical fields."""
    numeric: int = 0
    """Numeric fields."""
    sequences: int = 0
    """Sequence groups."""
    vectors: int = 0
    """Vector fields."""
    table_rows: int = 0
    """Rows of all embedding tables together, reserved rows included."""
    labels: tuple[str, ...] = ()
    """Tasks."""
    scenarios: int = 0
    """Scenarios, the unknown one not counted."""


class TrainingSummary(Config):
    """How the training went."""

    epochs: int
    """Epochs begun."""
    steps: int
    """Optimizer steps."""
    best_step: int
    """Step whose weights were kept."""
    stopped: str
    """Why it ended: patience or epochs."""
    seconds: float
    """Wall time of training and its evaluations."""
    rows_per_second: Number
    """Training rows per second, evaluations not counted."""
    table_optimizer: str
    """Optimizer of the embedding tables."""
    shuffle_order: str
    """full, block or balanced."""
    precision: str
    """float32 or bf16."""
    compile: bool = False
    """Whether the dense part was compiled."""
    resumed: bool = False
    """Whether it went on from a checkpoint."""


class Record(Config):
    """One run."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    run_id: str
    """Name of the run, unique in its folder of runs."""
    name: str
    """Name of the recipe."""
    model: str
    """Name of the model in the catalog."""
    family: str
    """Family of the model."""
    seed: int
    """Seed of initialisation, order and dropout."""
    recipe: Annotated[dict[str, Any], BeforeValidator(_plain)]
    """The whole recipe, defaults written out."""
    recipe_hash: str
    """`recipe_hash` of the recipe."""
    dataset: DatasetFacts
    """The data it ran on."""
    commit: Commit
    """The source that ran."""
    started: AwareDatetime
    """Start, UTC."""
    finished: AwareDatetime
    """End, UTC."""
    seconds: float
    """Wall time of the whole run."""
    machine: Machine
    """The machine."""
    versions: Versions
    """Versions."""
    status: Literal["completed", "failed"] = "completed"
    """Whether it came to its end."""
    error: str | None = None
    """One sentence on why a failed run failed."""
    training: TrainingSummary | None = None
    """How the training went; None when it failed before its end."""
    metrics: dict[str, dict[str, Number]] = Field(default_factory=dict)
    """Per split, each metric."""
    scenarios: dict[str, dict[str, dict[str, int | Number]]] = Field(default_factory=dict)
    """Per split and scenario, each metric and the number of `rows`."""
    cost: dict[str, int | Number] = Field(default_factory=dict)
    """What the model costs: dense_parameters, embedding_parameters, flops_per_row,
    bytes_moved_per_row, peak_memory_bytes, inference_rows_per_second ...; what was not measured is
    absent."""


@dataclass(frozen=True)
class StoredRun:
    """A record and the run folder that it stands in."""

    folder: Path
    """The run folder."""
    record: Record
    """Its record."""


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Short hash of the part of a recipe that decides the result.

    Left out are the recipe's name, its seed and the folder of its data set (a record states the
    seed and the data's own hash). Give the recipe with its defaults written out, so that a default
    left away and the same value typed hash the same.

    Raises:
        ValueError: the recipe holds something that TOML could not.
    """
    deciding = {key: _plain(value) for key, value in recipe.items() if key not in NOT_IN_HASH}
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_dataset(
    name: str, data_hash: str, rows: Mapping[str, int], schema: Schema
) -> DatasetFacts:
    """The facts of a data set with this fitted schema; `rows` per split."""
    return DatasetFacts(
        name=name,
        data_hash=data_hash,
        rows=dict(rows),
        categorical=len(schema.categorical),
        numeric=len(schema.numeric),
        sequences=len(schema.sequences),
        vectors=len(schema.vectors),
        table_rows=sum(schema.tables.values()),
        labels=tuple(label.name for label in schema.labels),
        scenarios=max(0, len(schema.scenarios) - 1),
    )


def write_record(folder: str | Path, record: Record) -> Path:
    """Write `record.json` into a run folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written; an earlier record is left as it was.
    """
    file = Path(folder) / RECORD_FILE
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(file, text + "\n")
    return file


def read_record(folder: str | Path) -> Record:
    """Read the record of a run folder (or a record file itself).

    Raises:
        FileNotFoundError: there is no record.
        ValueError: it is not JSON, of another version, or lacks something.
    """
    path = Path(folder)
    file = path / RECORD_FILE if path.is_dir() or path.suffix != ".json" else path
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}; it is written when a run ends")
    values = read_json_values(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: a record is a JSON object; got {type(values).__name__}")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file}: record format {version!r} is not readable; this rankloom reads "
            f"format {FORMAT_VERSION}: run the recipe again, or use the rankloom that wrote it"
        )
    return parse_config(Record, values, str(file))


def find_records(
    root: str | Path, *, unreadable: Literal["raise", "skip"] = "raise"
) -> list[StoredRun]:
    """Every record in a folder and its subfolders, in the order of their paths.

    Args:
        root: folder to search; a missing one holds no records.
        unreadable: what to do about a broken record or one of another format.

    Raises:
        ValueError: a record is unreadable, and `unreadable` is "raise".
    """
    found = []
    for file in sorted(Path(root).rglob(RECORD_FILE)):
        try:
            found.append(StoredRun(file.parent, read_record(file)))
        except ValueError:
            if unreadable == "raise":
                raise
    return found


def find_completed(
    root: str | Path,
    recipe_hash: str,
    data_hash: str,
    seed: int,
    commit: Commit,
    *,
    splits: Collection[str] = (),
) -> StoredRun | None:
    """The latest completed run of this recipe, data, seed and source; None when there is none.

    The hash of the package's sources decides, not the commit: an edited checkout does not reuse
    what its commit computed, and a commit that touches only docs invalidates nothing. Unreadable
    records count as absent, and so do those without metrics of one of `splits`.
    """
    matching = [
        run
        for run in find_records(root, unreadable="skip")
        if run.record.status == "completed"
        and run.record.recipe_hash == recipe_hash
        and run.record.dataset.data_hash == data_hash
        and run.record.seed == seed
        and run.record.commit.source_hash == commit.source_hash
        and run.record.metrics.keys() >= set(splits)
    ]
    return max(matching, key=lambda run: run.record.finished, default=None)
