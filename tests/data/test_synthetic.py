from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.metrics import roc_auc_score

from rankloom.data.synthetic import (
    SyntheticConfig,
    generate,
    synthetic_dataset,
    synthetic_table_schema,
    write_csv,
    write_parquet,
)

CONFIG = SyntheticConfig()


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return pl.concat(generate(CONFIG, 60_000))


def test_rows_do_not_depend_on_chunks_or_their_number(log: pl.DataFrame) -> None:
    chunks = list(generate(CONFIG, 20_000, chunk_rows=7_777))
    assert [chunk.height for chunk in chunks] == [7_777, 7_777, 4_446]
    assert_frame_equal(pl.concat(chunks), log.head(20_000))
    assert not pl.concat(generate(CONFIG, 100, seed=1))["item"].equals(log.head(100)["item"])
    assert list(generate(CONFIG, 0)) == []


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="got -1 and 4"):
        next(generate(CONFIG, -1, chunk_rows=4))


def test_columns(log: pl.DataFrame) -> None:
    fields = ["user", "item", "c0", "c1", "c2", "c3", "n0", "n1", "history", "scenario", "time"]
    truth = ["click", "conversion", "click_probability", "conversion_probability"]
    assert log.columns == [*fields, *truth]
    assert log["time"].diff().drop_nulls().min() > 0  # type: ignore[operator]
    assert set(log["scenario"].unique()) == {"s0", "s1", "s2"}
    lengths = log["history"].list.len()
    assert (lengths.min(), lengths.max()) == (0, 10)
    missing = log["n0"].null_count() / log.height
    assert abs(missing - 0.1) < 0.01
    assert log["c0"].max() < 100  # type: ignore[operator]


def test_conversion_is_known_after_a_click_only(log: pl.DataFrame) -> None:
    assert log.filter(pl.col("click") == 0)["conversion"].null_count() == (log["click"] == 0).sum()
    assert log.filter(pl.col("click") == 1)["conversion"].null_count() == 0


def test_labels_follow_the_stated_probabilities(log: pl.DataFrame) -> None:
    for label, given in (("click", log), ("conversion", log.filter(pl.col("click") == 1))):
        probability = given[f"{label}_probability"].to_numpy()
        outcome = given[label].to_numpy()
        for low in np.arange(0, 1, 0.2):
            inside = (probability >= low) & (probability < low + 0.2)
            spread = np.sqrt((probability * (1 - probability))[inside].sum())
            assert abs((outcome - probability)[inside].sum()) < 4 * spread


def test_every_planted_effect_is_there() -> None:
    effects = ("first_order", "second_order", "third_order", "numeric", "history", "scenario")
    silent = dict.fromkeys(effects, 0.0)
    flat = pl.concat(generate(SyntheticConfig(**silent), 2_000))  # type: ignore[arg-type]
    assert flat["click_probability"].n_unique() == 1
    for name in silent:
        config = SyntheticConfig(**(silent | {name: 1.0}))  # type: ignore[arg-type]
        frame = pl.concat(generate(config, 2_000))
        deviation = frame["click_probability"].std()
        assert isinstance(deviation, float)
        assert deviation > 0.1, name


def test_second_order_is_not_first_order() -> None:
    # Uniform values: what one field alone explains is the noise of its mean.
    config = SyntheticConfig(
        vocabularies=(),
        num_users=20,
        num_items=20,
        zipf=0.0,
        first_order=0,
        third_order=0,
        numeric=0,
        history=0,
        scenario=0,
        second_order=1.0,
    )
    frame = pl.concat(generate(config, 40_000)).with_columns(
        logit=(pl.col("click_probability") / (1 - pl.col("click_probability"))).log()
    )
    pairs = frame.group_by("user", "item").agg(pl.col("logit").std(ddof=0))
    assert pairs["logit"].max() < 1e-9  # type: ignore[operator]
    by_pair = frame.group_by("user", "item").agg(pl.col("logit").mean())
    total = by_pair["logit"].var()
    items = by_pair.group_by("item").agg(pl.col("logit").mean())["logit"].var()
    assert isinstance(total, float)
    assert isinstance(items, float)
    assert items < 0.4 * total


def test_history_tells_about_the_item(log: pl.DataFrame) -> None:
    config = SyntheticConfig(history=2.0, first_order=0, second_order=0, third_order=0, scenario=0)
    frame = pl.concat(generate(config, 20_000))
    empty = frame.filter(pl.col("history").list.len() == 0)
    full = frame.filter(pl.col("history").list.len() > 0)
    auc = [roc_auc_score(part["click"], part["click_probability"]) for part in (empty, full)]
    assert auc[1] > auc[0] + 0.1
    assert roc_auc_score(log["click"], log["click_probability"]) > 0.78


def test_csv_and_parquet_hold_the_log(log: pl.DataFrame, tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", CONFIG, 3_000)
    write_parquet(tmp_path / "log.parquet", CONFIG, 3_000)
    assert_frame_equal(pl.read_parquet(tmp_path / "log.parquet"), log.head(3_000))
    text = pl.read_csv(tmp_path / "log.csv", schema_overrides={"history": pl.String})
    assert text.height == 3_000
    ids = text["history"].fill_null("").str.split("|")
    expected = log.head(3_000)["history"].list.eval(pl.element().cast(pl.String)).list.join("|")
    assert ids.list.join("|").equals(expected)
    assert text["click"].equals(log.head(3_000)["click"])
    assert text["n0"].null_count() == log.head(3_000)["n0"].null_count()


def test_an_empty_parquet_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        write_parquet(tmp_path / "log.parquet", CONFIG, 0)


def test_schema_fits_the_log(log: pl.DataFrame) -> None:
    schema = synthetic_table_schema(CONFIG, "log.parquet")
    assert set(schema.features) <= set(log.columns)
    assert set(schema.labels) == {"click", "conversion"}
    assert not any("probability" in name for name in schema.features)
    assert synthetic_table_schema(CONFIG, conversion=False).labels.keys() == {"click"}
    bare = SyntheticConfig(history_length=0)
    assert "history" not in synthetic_table_schema(bare).features
    assert "history" not in pl.concat(generate(bare, 10)).columns


def test_a_dataset_of_the_log(log: pl.DataFrame, tmp_path: Path) -> None:
    dataset = synthetic_dataset(tmp_path, CONFIG, 3_000)
    assert sum(split.rows for split in dataset.manifest.splits.values()) == 3_000
    split = dataset.split("train")
    batch = split.slice(0, split.rows)
    raw = log.head(split.rows)
    assert batch.labels is not None
    assert batch.label_mask is not None
    assert batch.labels[:, 0].tolist() == raw["click"].to_list()
    assert batch.label_mask[:, 1].tolist() == raw["conversion"].is_not_null().to_list()
    assert batch.sequences["history"].lengths().tolist() == raw["history"].list.len().to_list()
    assert dataset.schema.sequence("history").ids[0].table == "item"
    # Rows with the same item have the same id, and only those.
    pairs = set(zip(batch.categorical[:, 1].tolist(), raw["item"].to_list(), strict=True))
    assert len(pairs) == raw["item"].n_unique() == len({first for first, _ in pairs})
