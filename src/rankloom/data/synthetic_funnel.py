"""A click-conversion log whose conversion is known for every row of the test split.

In a real log a conversion is known after a click alone, so a conversion model learns from clicked
rows and is asked about all of them, and nothing tells how wrong it is about the others. Here the
conversion of every row is drawn. Training and validation rows keep it where there is a click, test
rows keep it everywhere: the AUC, LogLoss and calibration of the conversion on the test split are
those over the entire space of exposures. `read_truth` has the true probabilities beside them.

With `shared_causes` the fields that make a click likely make a conversion likely as well (or
unlikely): clicked rows are another population than all rows. Nothing else selects them: given the
fields, click and conversion are drawn independently, as the corrections of ESMM and ESCM2 assume.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from scipy.special import logit

from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.synthetic import (
    SyntheticConfig,
    conversion_after_click,
    generate,
    synthetic_table_schema,
)
from rankloom.data.table_schema import FileSplit, TableSchema
from rankloom.evaluation.protocol import Evaluation, EvaluationConfig, Predictions, evaluate

FUNNEL = SyntheticConfig(bias=-3.0, conversion_bias=-2.5, shared_causes=(0.3, 0.6, 0.9))
"""Rare clicks, rarer conversions, and a bias that grows from scenario to scenario."""
TRUTH = ("scenario", "click", "conversion", "click_probability", "conversion_probability")
"""Columns of `read_truth`."""


def synthetic_funnel(
    folder: str | Path, config: SyntheticConfig, rows: int, seed: int = 0
) -> Dataset:
    """Write `train`, `valid` and `test.parquet` into a folder and prepare them in its `dataset`.

    Args:
        folder: where; made when it is not there.
        config: what the log looks like, `FUNNEL` for one.
        rows: rows of all splits together, at least ten; the newest tenth is the test split, the
            tenth before it the validation split.
        seed: seed of the rows.

    Raises:
        ValueError: fewer than ten rows.
    """
    if rows < 10:
        raise ValueError(f"a log of three splits needs at least 10 rows; got {rows}")
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    frames = generate(config, rows, seed, conversion_everywhere=True)
    rest = _write(home / "train.parquet", frames, rows - 2 * (rows // 10), after_click=True)
    rest = _write(home / "valid.parquet", chain([rest], frames), rows // 10, after_click=True)
    _write(home / "test.parquet", chain([rest], frames), rows // 10, after_click=False)
    return prepare(funnel_table_schema(config), home / "dataset", root=home)


def funnel_table_schema(config: SyntheticConfig) -> TableSchema:
    """The declaration of the three files: as that of one log, but split by file."""
    split = FileSplit(train="train.parquet", valid="valid.parquet", test="test.parquet")
    values = {"name": "synthetic-funnel", "input": None, "split": split}
    return synthetic_table_schema(config).model_copy(update=values)


def read_truth(folder: str | Path) -> pl.DataFrame:
    """What is true of the test split's rows, row by row in the split's order.

    Args:
        folder: the folder given to `synthetic_funnel`.

    Returns:
        Columns `scenario`, `click`, `conversion` (of every row), `click_probability` and
        `conversion_probability` (of a click, whether there is one or not).
    """
    return pl.read_parquet(Path(folder) / "test.parquet", columns=list(TRUTH))


def best_possible(folder: str | Path, config: EvaluationConfig | None = None) -> Evaluation:
    """The figures of the true probabilities on the test split: no model can expect better ones.

    Args:
        folder: the folder given to `synthetic_funnel`.
        config: what to report; None: AUC and LogLoss, per scenario too.

    Raises:
        FileNotFoundError: the log is not there.
    """
    dataset = Dataset.open(Path(folder) / "dataset")
    truth = read_truth(folder)
    split = dataset.split("test")
    rows = split.slice(0, split.rows)
    probabilities = truth.select("click_probability", "conversion_probability").to_numpy()
    predictions = Predictions(
        logits=logit(probabilities).astype(np.float32),
        labels=truth.select("click", "conversion").to_numpy().astype(np.float32),
        scenario=None if rows.scenario is None else rows.scenario.numpy(),
        group=None if rows.group is None else rows.group.numpy(),
    )
    return evaluate(predictions, dataset.schema, config)


def _write(
    path: Path, frames: Iterator[pl.DataFrame], rows: int, *, after_click: bool
) -> pl.DataFrame:
    """Write the next `rows` rows; returns what is left of the last frame that was read.

    With `after_click` the conversion is written where there is a click alone.
    """
    writer: pq.ParquetWriter | None = None
    for frame in frames:
        part = frame.head(rows)
        if after_click:
            part = part.with_columns(conversion_after_click())
        table = part.to_arrow()
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        rows -= part.height
        if not rows:
            writer.close()
            return frame.slice(part.height)
    raise AssertionError("the log ended before the split was full")
