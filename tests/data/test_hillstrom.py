"""Hillstrom's e-mail test: two labels in a row, three scenarios."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.prepare import prepare
from rankloom.data.sources import get

CHANNELS = {"Phone": 400, "Web": 400, "Multichannel": 200}
SEGMENTS = ("Mens E-Mail", "Womens E-Mail", "No E-Mail")


def made_up(seed: int = 0) -> pl.DataFrame:
    """Of each channel a fifth visits, and a quarter of those buys."""
    generator = np.random.default_rng(seed)
    channel = [name for name, rows in CHANNELS.items() for _ in range(rows)]
    visit = [int(row % 5 == 0) for rows in CHANNELS.values() for row in range(rows)]
    bought = [int(row % 20 == 0) for rows in CHANNELS.values() for row in range(rows)]
    history = generator.uniform(30, 3000, len(channel)).round(2)
    rows = pl.DataFrame(
        {
            "recency": generator.integers(1, 13, len(channel)),
            "history_segment": [f"{int(value) // 500 + 1}) step" for value in history],
            "history": history,
            "mens": generator.integers(0, 2, len(channel)),
            "womens": generator.integers(0, 2, len(channel)),
            "zip_code": [("Urban", "Rural")[row % 2] for row in range(len(channel))],
            "newbie": generator.integers(0, 2, len(channel)),
            "channel": channel,
            "segment": [SEGMENTS[row % 3] for row in range(len(channel))],
            "visit": visit,
            "conversion": bought,
            "spend": [29.99 * value for value in bought],
        }
    )
    return rows[generator.permutation(rows.height)]


def take(rows: pl.DataFrame, tmp_path: Path, name: str = "hillstrom.csv") -> Path:
    place = tmp_path / f"from {name}"
    place.mkdir(parents=True)
    if name.endswith(".csv"):
        rows.write_csv(place / name)
    else:
        rows.write_parquet(place / name)
    return get("hillstrom", origin=place, out=tmp_path / f"out {name}", verify=False)


def test_both_forms_give_the_same_customers(tmp_path: Path) -> None:
    rows = made_up()
    text = pl.col("history_segment", "zip_code", "channel", "segment").cast(pl.Categorical)
    flags = pl.col("recency", "mens", "womens", "newbie", "visit", "conversion").cast(pl.Int8)
    one = take(rows, tmp_path)
    other = take(rows.with_columns(text, flags), tmp_path, "hillstrom.parquet")
    first, second = (pl.read_parquet(folder / "customers.parquet") for folder in (one, other))
    assert first.equals(second)
    assert first.schema == second.schema
    assert (one / "schema.toml").read_text() == (other / "schema.toml").read_text()


def test_all_but_what_was_spent_is_kept_in_the_file_s_order(tmp_path: Path) -> None:
    rows = made_up()
    customers = pl.read_parquet(take(rows, tmp_path) / "customers.parquet")
    assert set(customers.columns) == {*rows.columns, "stratum"} - {"spend"}
    kept = [name for name in rows.columns if name != "spend"]
    assert customers.select(kept).equals(rows.select(kept))


def test_the_labels_come_in_funnel_order_and_the_channel_is_scenario_and_field(
    tmp_path: Path,
) -> None:
    raw = take(made_up(), tmp_path)
    dataset = prepare(raw / "schema.toml", tmp_path / "prepared")
    schema = dataset.schema
    assert [label.name for label in schema.labels] == ["visit", "conversion"]
    assert schema.scenarios == ("<unknown>", "Multichannel", "Phone", "Web")
    names = [field.name for field in schema.categorical]
    assert set(names) == {
        "recency",
        "history_segment",
        "mens",
        "womens",
        "zip_code",
        "newbie",
        "segment",
        "channel",
    }
    assert [field.name for field in schema.numeric] == ["history"]
    known = pl.read_parquet(dataset.folder / "vocabulary" / "channel.parquet")
    value = dict(zip(known["index"], known["value"], strict=True))
    # Of each channel's rows a fifth visits and a twentieth buys, in every split.
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        batch = dataset.split(split).slice(0, dataset.split(split).rows)
        assert batch.scenario is not None
        assert batch.label_mask is not None
        by_role = [schema.scenarios[index] for index in batch.scenario.tolist()]
        field = batch.categorical[:, names.index("channel")].tolist()
        assert [value[index] for index in field] == by_role
        visit, conversion = batch.labels.unbind(dim=1)
        labelled = batch.label_mask.bool()
        assert labelled[:, 0].all()
        assert labelled[:, 1].tolist() == (visit == 1).tolist()
        for channel, rows in CHANNELS.items():
            own = np.array([name == channel for name in by_role])
            assert own.sum() == rows * share
            assert visit[own].sum() == rows * share / 5
            assert conversion[own & labelled[:, 1].numpy()].sum() == rows * share / 20


def test_a_conversion_without_a_visit_names_its_row(tmp_path: Path) -> None:
    rows = made_up().with_row_index("row")
    late = (pl.col("row") == 6).cast(pl.Int64)
    broken = rows.with_columns(
        pl.when(pl.col("row") <= 6).then(0).otherwise("visit").alias("visit"),
        pl.when(pl.col("row") <= 6).then(late).otherwise("conversion").alias("conversion"),
    )
    message = r"^row 7: a conversion needs a visit; got conversion=1, visit=0$"
    with pytest.raises(ValueError, match=message):
        take(broken.drop("row"), tmp_path)


@pytest.mark.parametrize("name", ["hillstrom.csv", "hillstrom.parquet"])
def test_a_missing_column_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not readable as .*newbie"):
        take(made_up().drop("newbie"), tmp_path, name)


def test_a_web_page_in_the_file_s_place_is_no_data_set(tmp_path: Path) -> None:
    place = tmp_path / "hillstrom.csv"
    place.write_bytes(io.BytesIO(b"<html>\n<body>moved</body>\n</html>\n").getvalue())
    with pytest.raises(ValueError, match="not readable as CSV file"):
        get("hillstrom", origin=place, out=tmp_path / "out")


@pytest.mark.data
def test_the_published_counts(public_data: Path, tmp_path: Path) -> None:
    raw = get("hillstrom", origin=public_data / "hillstrom", out=tmp_path)
    customers = pl.read_parquet(raw / "customers.parquet")
    assert customers["visit"].sum() == 9_394
    assert customers["conversion"].sum() == 578
    channels = customers["channel"].value_counts().sort("channel").rows()
    assert channels == [("Multichannel", 7_762), ("Phone", 28_021), ("Web", 28_217)]
