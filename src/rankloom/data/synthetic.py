"""A click log with a known truth: any number of rows, chunk by chunk.

Planted: the weight of every value, second-order interactions of pairs of fields, third-order
interactions of triples, numeric fields, a preference for items like those of the user's history,
weights that depend on the scenario, and a conversion that only a click can have, of causes of its
own or some of the click's. The true probabilities stand in columns of their own, so that the best
possible AUC is known.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, field_validator

from rankloom.config import Config
from rankloom.data.planted import planted_normal, power_law, sigmoid
from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.synthetic_criteo import write_criteo
from rankloom.data.table_schema import TableSchema

__all__ = [
    "SyntheticConfig",
    "generate",
    "synthetic_dataset",
    "synthetic_table_schema",
    "write_criteo",
    "write_csv",
    "write_parquet",
]

BLOCK_ROWS = 2**14
"""Rows drawn from one generator; a row depends on (seed, block) and its place in the block."""
START_SECONDS = 1_600_000_000
"""Time of the first row, in seconds since 1970."""
LATENT = 4
"""Width of the latent vectors whose products are the interactions."""


class SyntheticConfig(Config):
    """What the log looks like and how strong each planted effect is (deviation of its logit)."""

    num_users: int = Field(1000, gt=0)
    """Users."""
    num_items: int = Field(500, gt=0)
    """Items."""
    vocabularies: tuple[int, ...] = (100, 50, 20, 10)
    """Values of the categorical fields c0, c1, ..."""
    num_numeric: int = Field(2, ge=0)
    """Numeric fields n0, n1, ..."""
    missing: float = Field(0.1, ge=0, lt=1)
    """Share of numeric cells that are missing."""
    num_scenarios: int = Field(3, gt=0)
    """Scenarios s0, s1, ...; the later ones are rarer."""
    history_length: int = Field(10, ge=0)
    """Longest history; 0 leaves the column out."""
    zipf: float = Field(1.1, ge=0)
    """Exponent of the frequency of users, items and values; 0 for equal frequencies."""
    seconds_per_row: int = Field(10, gt=0)
    """Time between rows."""
    bias: float = -1.0
    """Logit of the click before every effect."""
    conversion_bias: float = -0.5
    """Logit of the conversion of a click before every effect."""
    first_order: float = Field(0.6, ge=0)
    """Strength of the values' own weights."""
    second_order: float = Field(0.8, ge=0)
    """Strength of the interactions of neighbouring fields, (user, item) first."""
    third_order: float = Field(0.6, ge=0)
    """Strength of the interaction of the first three categorical fields."""
    numeric: float = Field(0.4, ge=0)
    """Strength of the numeric fields."""
    history: float = Field(0.8, ge=0)
    """Strength of the likeness of the item with the history."""
    scenario: float = Field(0.5, ge=0)
    """Strength of the scenario's own weight of the item."""
    shared_causes: tuple[float, ...] = ()
    """Correlation of the conversion's effects with the click's in the scenarios s0, s1, ...

    From -1 to 1, exact where both vary alike and near it elsewhere; the last counts for the
    scenarios after it; with none given they are independent.
    Where it is above 0, clicked rows convert more often than the others would, and below 0 less.
    """
    truth_seed: int = Field(0, ge=0)
    """Seed of the planted weights; the rows have a seed of their own."""

    @field_validator("shared_causes")
    @classmethod
    def _check_correlations(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(abs(value) > 1 for value in values):
            raise ValueError(f"correlations must lie between -1 and 1; got {values}")
        return values


def generate(
    config: SyntheticConfig,
    rows: int,
    seed: int = 0,
    chunk_rows: int = 2**16,
    *,
    conversion_everywhere: bool = False,
) -> Iterator[pl.DataFrame]:
    """The log, chunk by chunk; the rows do not depend on the size of the chunks.

    Args:
        config: what it looks like.
        rows: number of rows.
        seed: seed of the rows.
        chunk_rows: rows of a chunk; the last may be shorter.
        conversion_everywhere: whether rows without a click have a conversion as well, the one that
            a click would have had.

    Yields:
        Frames with `user`, `item`, `c0`..., `n0`... (null where missing), `history` (list of items,
        oldest first), `scenario`, `time` (seconds, rising), `click`, `conversion` (null without a
        click), `click_probability` and `conversion_probability` (of a click).
    """
    if rows < 0 or chunk_rows < 1:
        raise ValueError(f"rows must be >= 0 and chunk_rows > 0; got {rows} and {chunk_rows}")
    waiting: list[pl.DataFrame] = []
    count = 0
    for block in range(-(-rows // BLOCK_ROWS)):
        frame = _block(config, seed, block).head(rows - block * BLOCK_ROWS)
        if not conversion_everywhere:
            frame = frame.with_columns(conversion_after_click())
        while frame.height:
            part = frame.head(chunk_rows - count)
            waiting.append(part)
            count += part.height
            frame = frame.slice(part.height)
            if count == chunk_rows:
                yield pl.concat(waiting)
                waiting, count = [], 0
    if waiting:
        yield pl.concat(waiting)


def conversion_after_click() -> pl.Expr:
    """The conversion where there is a click, else null."""
    return pl.when(pl.col("click") == 1).then(pl.col("conversion")).alias("conversion")


def _block(config: SyntheticConfig, seed: int, block: int) -> pl.DataFrame:
    """Rows of one block, with the conversion of every row."""
    generator = np.random.default_rng([seed, block])
    rows = BLOCK_ROWS
    ids = {
        "user": power_law(generator, rows, config.num_users, config.zipf),
        "item": power_law(generator, rows, config.num_items, config.zipf),
        **{
            f"c{index}": power_law(generator, rows, size, config.zipf)
            for index, size in enumerate(config.vocabularies)
        },
    }
    scenario = power_law(generator, rows, config.num_scenarios, 1.0)
    numeric = generator.standard_normal((rows, config.num_numeric))
    present = generator.random((rows, config.num_numeric)) >= config.missing
    history, lengths = _histories(config, generator, ids["user"])
    jitter = generator.integers(0, config.seconds_per_row, rows)
    draws = generator.random((2, rows))

    effects = [
        _effects(config, task, ids, scenario, numeric * present, history, lengths)
        for task in range(2)
    ]
    if config.shared_causes:
        last = len(config.shared_causes) - 1
        shared = np.array(config.shared_causes)[np.minimum(scenario, last)]
        effects[1] = shared * effects[0] + np.sqrt(1 - shared**2) * effects[1]
    click_probability = sigmoid(config.bias + effects[0])
    conversion_probability = sigmoid(config.conversion_bias + effects[1])
    click = draws[0] < click_probability
    conversion = draws[1] < conversion_probability

    columns: dict[str, pl.Series] = {name: pl.Series(name, part) for name, part in ids.items()}
    for index in range(config.num_numeric):
        cells = pa.array(numeric[:, index], mask=~present[:, index])
        columns[f"n{index}"] = _series(f"n{index}", cells)
    if config.history_length:
        kept = np.arange(config.history_length) < lengths[:, None]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(history[kept]))
        columns["history"] = _series("history", lists)
    names = np.array([f"s{index}" for index in range(config.num_scenarios)])
    columns["scenario"] = pl.Series("scenario", names.tolist()).gather(scenario)
    number = block * BLOCK_ROWS + np.arange(rows)
    columns["time"] = pl.Series("time", START_SECONDS + number * config.seconds_per_row + jitter)
    columns["click"] = pl.Series("click", click.astype(np.int64))
    columns["conversion"] = pl.Series("conversion", conversion.astype(np.int64))
    columns["click_probability"] = pl.Series("click_probability", click_probability)
    columns["conversion_probability"] = pl.Series("conversion_probability", conversion_probability)
    return pl.DataFrame(columns)


def _series(name: str, array: pa.Array) -> pl.Series:
    series = pl.from_arrow(array)
    if not isinstance(series, pl.Series):
        raise TypeError(f"expected a column; got {type(series).__name__}")
    return series.alias(name)


def _histories(
    config: SyntheticConfig, generator: np.random.Generator, users: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items [rows, history_length] and the number that counts in each row.

    Three of four events are of the user's own region of the catalogue, a quarter of it wide.
    """
    shape = (len(users), config.history_length)
    lengths = generator.integers(0, config.history_length + 1, len(users))
    anywhere = power_law(generator, shape, config.num_items, config.zipf)
    width = max(config.num_items // 4, 1)
    region = sigmoid(planted_normal(users, config.truth_seed, 1)) * config.num_items
    own = region.astype(np.int64)[:, None] + power_law(generator, shape, width, config.zipf)
    chosen = np.where(generator.random(shape) < 0.75, own % config.num_items, anywhere)
    return chosen, lengths


def _effects(
    config: SyntheticConfig,
    task: int,
    ids: dict[str, NDArray[np.int64]],
    scenario: NDArray[np.int64],
    numeric: NDArray[np.float64],
    history: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Sum of the planted effects on a task's logit; each has its configured deviation."""
    rows = len(scenario)
    names = list(ids)
    stream = (config.truth_seed, 2 + task)
    latent = {
        name: np.stack([planted_normal(part, *stream, field, k) for k in range(LATENT)], axis=1)
        for field, (name, part) in enumerate(ids.items())
    }  # each [rows, LATENT]
    total = np.zeros(rows)
    for field, part in enumerate(ids.values()):
        weight = planted_normal(part, *stream, field, LATENT)
        total += config.first_order / np.sqrt(len(ids)) * weight
    pairs = list(pairwise(names))
    for left, right in pairs:
        product = (latent[left] * latent[right]).sum(1)
        total += config.second_order / np.sqrt(len(pairs) * LATENT) * product
    third = names[2:5]
    if len(third) == 3:
        product = (latent[third[0]] * latent[third[1]] * latent[third[2]]).sum(1)
        total += config.third_order / np.sqrt(LATENT) * product
    for index in range(config.num_numeric):
        slope = planted_normal(np.array([index]), *stream, 100)
        total += config.numeric / np.sqrt(config.num_numeric) * np.sign(slope) * numeric[:, index]
    if config.history_length:
        taste = np.zeros((rows, LATENT))
        counts = np.arange(config.history_length) < lengths[:, None]  # [rows, history_length]
        for k in range(LATENT):
            taste[:, k] = (planted_normal(history, *stream, 1, k) * counts).sum(1)
        scale = np.sqrt(np.maximum(lengths, 1) * LATENT)
        total += config.history * (taste * latent["item"]).sum(1) / scale
    own = planted_normal(ids["item"] * config.num_scenarios + scenario, *stream, 101)
    return total + config.scenario * own


def write_csv(path: str | Path, config: SyntheticConfig, rows: int, seed: int = 0) -> None:
    """Write the log as CSV with header; histories joined with `|`."""
    with Path(path).open("wb") as stream:
        for number, frame in enumerate(generate(config, rows, seed)):
            if config.history_length:
                text = pl.col("history").list.eval(pl.element().cast(pl.String)).list.join("|")
                frame = frame.with_columns(text)
            frame.write_csv(stream, include_header=number == 0)


def write_parquet(path: str | Path, config: SyntheticConfig, rows: int, seed: int = 0) -> None:
    """Write the log as Parquet; histories are list columns."""
    writer: pq.ParquetWriter | None = None
    for frame in generate(config, rows, seed):
        table = frame.to_arrow()
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is None:
        raise ValueError("a Parquet log needs at least one row")
    writer.close()


def synthetic_table_schema(
    config: SyntheticConfig, files: str = "log.csv", *, conversion: bool = True
) -> TableSchema:
    """The declaration that fits a generated log.

    Args:
        config: what the log looks like.
        files: where it was written.
        conversion: whether the conversion is a second task.
    """
    features: dict[str, object] = {
        name: {"kind": "categorical"}
        for name in ("user", "item", *(f"c{index}" for index in range(len(config.vocabularies))))
    }
    for index in range(config.num_numeric):
        features[f"n{index}"] = {"kind": "numeric"}
    if config.history_length:
        features["history"] = {
            "kind": "sequence",
            "ordered": True,
            "vocabulary": "item",
            "max_length": config.history_length,
        }
    labels: dict[str, object] = {"click": {}}
    if conversion:
        labels["conversion"] = {"allow_missing": True}
    return TableSchema.model_validate(
        {
            "name": "synthetic",
            "input": {"files": files},
            "features": features,
            "labels": labels,
            "roles": {"scenario": "scenario", "group": "user", "time": "time"},
            "split": {"kind": "time", "column": "time"},
        }
    )


def synthetic_dataset(
    folder: str | Path,
    config: SyntheticConfig,
    rows: int,
    seed: int = 0,
    *,
    conversion: bool = True,
) -> Dataset:
    """Write a log to `folder/log.parquet` and prepare it in `folder/dataset`.

    Args:
        folder: where; made when it is not there.
        config: what the log looks like.
        rows: rows of all splits together; the newest tenth is the test split.
        seed: seed of the rows.
        conversion: whether the conversion is a second task.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    write_parquet(home / "log.parquet", config, rows, seed)
    schema = synthetic_table_schema(config, "log.parquet", conversion=conversion)
    return prepare(schema, home / "dataset", root=home)
