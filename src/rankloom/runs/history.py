"""The course of a run: `metrics.parquet`, one row per evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from rankloom.runs.atomic import replacing

HISTORY_FILE = "metrics.parquet"
"""Name of the history in a run folder."""
STEP = "step"
"""Column of the optimizer step, int64; every other column is float64."""
GRADIENT_NORM = "gradient_norm/"
"""Start of the columns that hold gradient norms, followed by the pattern that was watched."""
PROGRESS_COLUMNS = ("step", "epoch", "seconds", "train_loss", "learning_rate")
"""Columns that are no validation metric, as far as a run has them; nor are `loss/...`, the parts of
the training loss, and `gradient_norm/...`."""


def history_frame(rows: Sequence[Mapping[str, float | int | None]]) -> pl.DataFrame:
    """History rows as a frame, ordered by step.

    Columns stand in the order in which they first appear; a value that a row lacks is null. NaN
    stays NaN.

    Raises:
        ValueError: a row has no step, or a value is not a number.
    """
    columns = list(dict.fromkeys([STEP, *(key for row in rows for key in row)]))
    for number, row in enumerate(rows):
        if row.get(STEP) is None:
            raise ValueError(f"history row {number} has no step; its keys: {', '.join(row)}")
        for key, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise ValueError(
                    f"history row {number}: {key} must be a number; got {type(value).__name__}"
                )
    data = {
        name: pl.Series(
            name,
            [_number(row.get(name)) for row in rows],
            dtype=pl.Float64,
        )
        for name in columns
    }
    return pl.DataFrame(data).with_columns(pl.col(STEP).cast(pl.Int64)).sort(STEP)


def write_history(folder: str | Path, rows: Sequence[Mapping[str, float | int | None]]) -> Path:
    """Write `metrics.parquet` into a run folder in one step, and return its path.

    Raises:
        ValueError: as `history_frame`.
        OSError: the folder cannot be written.
    """
    frame = history_frame(rows)
    file = Path(folder) / HISTORY_FILE
    with replacing(file) as part:
        frame.write_parquet(part)
    return file


def read_history(folder: str | Path) -> pl.DataFrame:
    """Read the history of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no Parquet file.
    """
    file = Path(folder) / HISTORY_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no {HISTORY_FILE} in {file.parent}")
    try:
        return pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file}: not a readable Parquet file: {error}") from None


def validation_metrics(history: pl.DataFrame) -> list[str]:
    """Columns of a history that are validation metrics."""
    return [
        name
        for name in history.columns
        if name not in PROGRESS_COLUMNS and not name.startswith(("loss/", GRADIENT_NORM))
    ]


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)
