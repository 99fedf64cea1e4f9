"""The schemas beside the recipes prepare small files of the public formats that they are for."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.prepare import prepare
from rankloom.data.sources import SOURCES
from rankloom.data.sources.avazu import COLUMNS as AVAZU_COLUMNS
from rankloom.data.sources.criteo import CATEGORIES, INTEGERS
from rankloom.data.store import Dataset
from rankloom.data.synthetic_criteo import write_criteo
from rankloom.data.table_schema import load_table_schema
from rankloom.schema import NUM_RESERVED

RECIPES = Path(__file__).parents[2] / "recipes"
SCHEMAS = sorted(path.parent.name for path in RECIPES.glob("*/schema.toml"))
WITH_HISTORIES = ("amazonelectronics_x1", "kuaivideo_x1", "taobaoad_x1")
"""Formats of two files, which test_synthetic_reczoo.py prepares."""
WITH_SCENARIOS = ("aliccp", "aliexpress", "iaac", "kuairand")
"""Formats with scenarios, which test_scenario_formats.py prepares."""
ROWS = {"train": 600, "valid": 100, "test": 100}


def criteo_frame(rows: int, folder: Path) -> pl.DataFrame:
    write_criteo(folder / "train.txt", rows, seed=1, num_values=2_000)
    return pl.read_csv(
        folder / "train.txt",
        separator="\t",
        has_header=False,
        new_columns=["Label", *INTEGERS, *CATEGORIES],
        infer_schema_length=None,
    )


def criteo_x4(rows: int, folder: Path) -> pl.DataFrame:
    return criteo_frame(rows, folder)


def criteo_x1(rows: int, folder: Path) -> pl.DataFrame:
    """Numbers scaled, ids counted through all columns, nothing missing, labels as 0.0 and 1.0."""
    raw = criteo_frame(rows, folder)
    generator = np.random.default_rng(2)
    ids = {name: generator.integers(1, 30, rows) + 30 * k for k, name in enumerate(CATEGORIES)}
    scaled = [(pl.col(name).fill_null(0) / 100).round(6) for name in INTEGERS]
    return raw.select(pl.col("Label").cast(pl.Float64).alias("label"), *scaled).with_columns(
        **{name: pl.Series(column) for name, column in ids.items()}
    )


def avazu_x1(rows: int, folder: Path) -> pl.DataFrame:
    generator = np.random.default_rng(3)
    columns = {f"feat_{k}": generator.integers(40 * k, 40 * k + 20, rows) for k in range(1, 23)}
    return pl.DataFrame({"label": generator.integers(0, 2, rows), **columns})


def avazu_x4(rows: int, folder: Path) -> pl.DataFrame:
    generator = np.random.default_rng(4)
    columns = {name: generator.integers(0, 20, rows) for name in AVAZU_COLUMNS}
    columns["id"] = np.arange(rows) + 10**17
    columns["click"] = generator.integers(0, 2, rows)
    columns["hour"] = 14102100 + 100 * generator.integers(0, 7, rows) + columns["C1"]
    return pl.DataFrame(columns).with_columns(pl.format("{}a99f", "site_id").alias("site_id"))


def movielens_tag(rows: int, folder: Path) -> pl.DataFrame:
    generator = np.random.default_rng(5)
    names = ("label", "user_id", "item_id", "tag_id")
    return pl.DataFrame(
        {name: generator.integers(0, 2 + 7 * k, rows) for k, name in enumerate(names)}
    )


MAKERS = {
    "avazu_x1": avazu_x1,
    "avazu_x4": avazu_x4,
    "criteo_x1": criteo_x1,
    "criteo_x4": criteo_x4,
    "movielens-tag": movielens_tag,
}


def write_parts(frame: pl.DataFrame, folder: Path, rows: Mapping[str, int]) -> None:
    start = 0
    for split, count in rows.items():
        frame.slice(start, count).write_csv(folder / f"{split}.csv")
        start += count


def prepared(name: str, folder: Path) -> tuple[pl.DataFrame, Dataset]:
    """The rows of all three files, and the data set that the schema makes of them."""
    frame = MAKERS[name](sum(ROWS.values()), folder)
    write_parts(frame, folder, ROWS)
    return frame, prepare(RECIPES / name / "schema.toml", folder / "prepared", root=folder)


def vocabulary_sizes(dataset: Dataset) -> dict[str, int]:
    tables = dataset.schema.tables
    return {field.name: tables[field.table] - NUM_RESERVED for field in dataset.schema.categorical}


def test_every_format_is_tried() -> None:
    assert sorted([*MAKERS, *WITH_HISTORIES, *WITH_SCENARIOS]) == SCHEMAS


@pytest.mark.parametrize("name", MAKERS)
def test_the_schema_prepares_its_format(name: str, tmp_path: Path) -> None:
    frame, dataset = prepared(name, tmp_path)
    assert {split: dataset.split(split).rows for split in ROWS} == ROWS
    schema = load_table_schema(RECIPES / name / "schema.toml")
    assert schema.name == name
    names = [field.name for field in dataset.schema.categorical]
    names += [field.name for field in dataset.schema.numeric]
    assert set(names) == set(schema.features)
    (label,) = schema.labels
    labels = dataset.split("test").slice(0, ROWS["test"]).labels
    assert labels is not None
    wanted = frame.tail(ROWS["test"])[label].cast(pl.Float32).to_list()
    assert labels[:, 0].tolist() == wanted


@pytest.mark.parametrize("name", ["criteo_x1", "avazu_x1", "movielens-tag"])
def test_every_training_value_is_kept(name: str, tmp_path: Path) -> None:
    frame, dataset = prepared(name, tmp_path)
    train = frame.head(ROWS["train"])
    sizes = vocabulary_sizes(dataset)
    assert sizes == {column: train[column].n_unique() for column in sizes}


def test_criteo_x4_makes_categories_of_integers_and_drops_rare_values(tmp_path: Path) -> None:
    frame, dataset = prepared("criteo_x4", tmp_path)
    train = frame.head(ROWS["train"])
    sizes = vocabulary_sizes(dataset)
    for name in INTEGERS:
        values = train[name].drop_nulls().to_list()
        made = [int(np.floor(np.log(x) ** 2)) if x > 2 else x for x in values]
        assert sizes[name] == sum(made.count(value) >= 10 for value in set(made)), name
    for name in CATEGORIES:
        counts = train[name].drop_nulls().value_counts()["count"]
        assert sizes[name] == (counts >= 10).sum(), name


def test_avazu_x4_makes_three_fields_of_the_hour_and_drops_the_id(tmp_path: Path) -> None:
    frame, dataset = prepared("avazu_x4", tmp_path)
    sizes = vocabulary_sizes(dataset)
    assert "id" not in sizes
    assert "hour" not in sizes
    assert (sizes["hour_of_day"], sizes["weekday"], sizes["weekend"]) == (20, 7, 2)
    counts = frame.head(ROWS["train"])["device_ip"].value_counts()["count"]
    assert sizes["device_ip"] == (counts >= 2).sum()


@pytest.mark.parametrize(("name", "source"), [("criteo_x4", "criteo"), ("avazu_x4", "avazu")])
def test_the_challenge_s_own_file_gives_the_same_fields(name: str, source: str) -> None:
    whole = SOURCES[source].forms[-1].schemas()["schema"].parse()
    assert load_table_schema(RECIPES / name / "schema.toml").features == whole.features


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sample", "separator", "columns"),
    [
        ("criteo_x4", "criteo-sample", "\t", ("Label", *INTEGERS, *CATEGORIES)),
        ("avazu_x4", "avazu-sample", ",", AVAZU_COLUMNS),
    ],
)
def test_raw_samples_with_a_header_are_taken(
    name: str,
    sample: str,
    separator: str,
    columns: tuple[str, ...],
    public_data: Path,
    tmp_path: Path,
) -> None:
    """The publisher's files are the challenge's rows as CSV with header, so the samples are too."""
    rows = {}
    for split, part in {"train": "train", "valid": "dev", "test": "test"}.items():
        (path,) = (public_data / sample).glob(f"{part}.*.gz")
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        lines = [line.replace(separator, ",") for line in lines]
        header = ",".join(columns)
        body = [line for line in lines if line and line != header]
        (tmp_path / f"{split}.csv").write_text("\n".join([header, *body]) + "\n")
        rows[split] = len(body)
    dataset = prepare(RECIPES / name / "schema.toml", tmp_path / "prepared", root=tmp_path)
    assert {split: dataset.split(split).rows for split in rows} == rows
    assert len(dataset.schema.categorical) == len(
        load_table_schema(RECIPES / name / "schema.toml").features
    )
