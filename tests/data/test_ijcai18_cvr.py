"""The sample of the IJCAI-18 contest, with its two splits."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.prepare import prepare
from rankloom.data.sources import get
from rankloom.data.sources.ijcai18_cvr import HELD_OUT, IDS, RATES
from rankloom.data.store import Dataset

PAIR = ["user_id", "item_id"]


def clicks(rows: int, items: range, seed: int) -> pl.DataFrame:
    """Clicks of 60 users on some items; a third of the rows are copies of others."""
    generator = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "is_trade": generator.integers(0, 2, rows),
            **{name: generator.integers(1, 5, rows) for name in IDS},
            **{name: generator.uniform(0.7, 1.0, rows).round(3) for name in RATES},
        }
    ).with_columns(
        pl.Series("user_id", generator.integers(0, 60, rows)),
        pl.Series("item_id", generator.integers(items.start, items.stop, rows)),
        pl.Series("context_page_id", generator.integers(1, 21, rows)),
        pl.Series("item_category_list", [["1", str(row % 3)] for row in range(rows)]),
    )
    copies = frame[generator.integers(0, rows, rows // 2)]
    return pl.concat([frame, copies]).with_columns(pl.col("is_trade", *IDS).cast(pl.Int32))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    place = tmp_path / "from"
    place.mkdir()
    clicks(1_200, range(50), 0).write_parquet(place / "train.parquet")
    # Items 48 and 49 are in both tables, as a few of the published ones are.
    clicks(500, range(48, 80), 1).write_parquet(place / "test.parquet")
    return get("ijcai18-cvr", origin=place, out=tmp_path / "out", verify=False)


def values(dataset: Dataset, name: str, split: str) -> list[object]:
    """Raw values of a field in a split; None for one that training lacks."""
    stored = dataset.split(split)
    field = [one.name for one in dataset.schema.categorical].index(name)
    known = pl.read_parquet(dataset.folder / "vocabulary" / f"{name}.parquet")
    value = dict(zip(known["index"], known["value"], strict=True))
    return [
        value.get(index) for index in stored.slice(0, stored.rows).categorical[:, field].tolist()
    ]


def test_every_click_is_kept_and_those_of_a_user_on_an_item_are_in_one_split(raw: Path) -> None:
    tables = [pl.read_parquet(raw / f"{name}.parquet") for name in ("train", "test")]
    assert [table.height for table in tables] == [1_800, 750]
    union = pl.concat(tables)
    repeated = union.drop("split").is_duplicated()
    assert repeated.sum() > 500
    splits = union.group_by(PAIR).agg(pl.col("split").n_unique(), pl.len())
    assert splits["split"].unique().to_list() == [1]
    assert (splits["len"] > 1).any()
    # Another file with some of the rows draws the same.
    pairs = union.unique(PAIR)
    shares = dict(pairs["split"].value_counts(normalize=True).rows())
    for split in ("valid", "test"):
        deviation = (HELD_OUT * (1 - HELD_OUT) / pairs.height) ** 0.5
        assert abs(shares[split] - HELD_OUT) < 4 * deviation


def test_the_shuffled_split_prepares_with_page_as_scenario_and_field(
    raw: Path, tmp_path: Path
) -> None:
    dataset = prepare(raw / "schema.toml", tmp_path / "prepared")
    assert dataset.name == "ijcai18-cvr"
    assert dataset.schema.scenarios == ("<unknown>", *map(str, range(1, 21)))
    union = pl.concat([pl.read_parquet(raw / f"{name}.parquet") for name in ("train", "test")])
    for split in ("train", "valid", "test"):
        own = union.filter(pl.col("split") == split)
        stored = dataset.split(split)
        batch = stored.slice(0, stored.rows)
        assert batch.labels[:, 0].tolist() == own["is_trade"].to_list()
        assert batch.scenario is not None
        # Scenarios are numbered as their names are, so a page has its own number.
        assert batch.scenario.tolist() == own["context_page_id"].to_list()
        assert values(dataset, "context_page_id", split) == own["context_page_id"].to_list()
        lists = batch.sequences["item_category_list"]
        assert (lists.offsets.diff() == 2).all()
    assert [field.name for field in dataset.schema.numeric] == list(RATES)


def test_the_cold_split_keeps_the_test_table_and_holds_out_items_with_all_of_their_clicks(
    raw: Path, tmp_path: Path
) -> None:
    dataset = prepare(raw / "schema-cold.toml", tmp_path / "prepared")
    assert dataset.name == "ijcai18-cvr-cold"
    rows = {split: dataset.split(split).rows for split in ("train", "valid", "test")}
    assert rows["test"] == 750
    assert rows["train"] + rows["valid"] == 1_800
    # Items are drawn whole: training knows none of the validation split's.
    held_out = values(dataset, "item_id", "valid")
    assert set(held_out) == {None}
    trained = set(values(dataset, "item_id", "train")) - {None}
    table = pl.read_parquet(raw / "train.parquet")
    counts = dict(table["item_id"].value_counts().rows())
    assert rows["train"] == sum(counts[item] for item in trained)
    assert 1 <= 50 - len(trained) <= 25
    known = set(values(dataset, "item_id", "test")) - {None}
    assert known == trained & {48, 49}


def test_values_seen_once_train_the_row_of_unknown_ones(raw: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        path = raw / f"{name}.parquet"
        table = pl.read_parquet(path)
        # Every shop of the training split is seen once, but for shop 1.
        shop = pl.when(pl.int_range(pl.len()) < 40).then(pl.int_range(pl.len()) + 1_000)
        table.with_columns(shop.otherwise(1).alias("shop_id")).write_parquet(path)
    dataset = prepare(raw / "schema-cold.toml", tmp_path / "prepared")
    assert set(values(dataset, "shop_id", "train")) == {1, None}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    place = tmp_path / "from"
    place.mkdir()
    for name in ("train", "test"):
        clicks(20, range(5), 0).drop("shop_id").write_parquet(place / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"not readable as Parquet tables: .*shop_id"):
        get("ijcai18-cvr", origin=place, out=tmp_path / "out", verify=False)


def test_one_of_the_two_tables_is_not_enough(tmp_path: Path) -> None:
    clicks(20, range(5), 0).write_parquet(tmp_path / "train.parquet")
    message = r"holds no known form of IJCAI-18 .*; known: .*train\.parquet, test\.parquet"
    with pytest.raises(ValueError, match=message):
        get("ijcai18-cvr", origin=tmp_path / "train.parquet", out=tmp_path / "out")


@pytest.mark.data
def test_the_published_sample(public_data: Path, tmp_path: Path) -> None:
    raw = get("ijcai18-cvr", origin=public_data / "ijcai18-cvr", out=tmp_path)
    tables = {name: pl.read_parquet(raw / f"{name}.parquet") for name in ("train", "test")}
    assert [(table.height, table["is_trade"].sum()) for table in tables.values()] == [
        (20_000, 441),
        (7_999, 158),
    ]
    items = [set(table["item_id"]) for table in tables.values()]
    assert (len(items[0]), len(items[1]), len(items[0] & items[1])) == (758, 466, 4)
    union = pl.concat(tables.values()).drop("split")
    assert union.height - union.unique().height == 826
    # Rows of equal fields are of one user and item, so none has a copy in another split.
    fields = [name for name in union.columns if name != "is_trade"]
    whole = pl.concat(tables.values()).group_by(fields).agg(pl.col("split").n_unique())
    assert whole["split"].max() == 1
    dataset = prepare(raw / "schema-cold.toml", tmp_path / "prepared")
    rows = [dataset.split(split).rows for split in ("train", "valid", "test")]
    assert rows == [15_838, 4_162, 7_999]
