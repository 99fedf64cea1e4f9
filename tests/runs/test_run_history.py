import math
from pathlib import Path

import polars as pl
import pytest

from rankloom.runs.history import (
    history_frame,
    read_history,
    validation_metrics,
    write_history,
)

ROWS = [
    {"step": 10, "epoch": 1, "seconds": 1.5, "train_loss": 0.6, "auc": 0.7},
    {"step": 20, "epoch": 2, "seconds": 3.0, "train_loss": 0.5, "auc": 0.75, "log_loss": 0.4},
]


def test_round_trip(tmp_path: Path) -> None:
    file = write_history(tmp_path / "run", ROWS)
    assert file.name == "metrics.parquet"
    frame = read_history(tmp_path / "run")
    assert frame.columns == ["step", "epoch", "seconds", "train_loss", "auc", "log_loss"]
    assert frame.schema["step"] == pl.Int64
    assert frame.schema["epoch"] == pl.Float64
    assert frame["auc"].to_list() == [0.7, 0.75]
    assert frame["log_loss"].to_list() == [None, 0.4]


def test_rows_are_ordered_by_step() -> None:
    assert history_frame(ROWS[::-1])["step"].to_list() == [10, 20]


def test_nan_stays_nan() -> None:
    assert math.isnan(history_frame([{"step": 1, "auc": math.nan}])["auc"][0])


def test_no_rows(tmp_path: Path) -> None:
    write_history(tmp_path, [])
    frame = read_history(tmp_path)
    assert (frame.height, frame.columns) == (0, ["step"])


def test_row_without_step() -> None:
    with pytest.raises(ValueError, match="history row 1 has no step; its keys: auc"):
        history_frame([{"step": 1}, {"auc": 0.5}])


def test_value_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="history row 0: auc must be a number; got str"):
        history_frame([{"step": 1, "auc": "high"}])  # type: ignore[dict-item]


def test_failed_write_keeps_the_old_history(tmp_path: Path) -> None:
    write_history(tmp_path, ROWS)
    with pytest.raises(ValueError, match="no step"):
        write_history(tmp_path, [{"auc": 0.5}])
    assert read_history(tmp_path).height == 2


def test_missing_and_broken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics\.parquet in"):
        read_history(tmp_path)
    (tmp_path / "metrics.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read_history(tmp_path)


def test_validation_metrics() -> None:
    row = {"step": 1, "epoch": 1, "train_loss": 1, "loss/aux": 0.1, "auc": 0.5, "auc/click": 0.6}
    assert validation_metrics(history_frame([row])) == ["auc", "auc/click"]
