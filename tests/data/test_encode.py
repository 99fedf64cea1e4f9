from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from prepare_examples import item_frame, rich_frame, write_rich

from rankloom.batch import Batch
from rankloom.data.encode import Encoder, Transforms, vocabulary_path
from rankloom.data.prepare import prepare
from rankloom.data.rows import open_rows
from rankloom.data.store import Dataset
from rankloom.data.table_schema import TableSchema


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TableSchema, Dataset]:
    folder = tmp_path_factory.mktemp("rich")
    schema = write_rich(folder)
    return folder, schema, prepare(schema, folder / "data", root=folder)


def raw_split(folder: Path, schema: TableSchema, code: int) -> pl.DataFrame:
    """The rows of a split as `open_rows` gives them: histories and derived columns included."""
    parts = [
        chunk.frame.filter(pl.Series(chunk.split == code))
        for chunk in open_rows(schema, folder).chunks()
    ]
    return pl.concat(parts)


def assert_same(found: Batch, expected: Batch) -> None:
    for part in fields(expected):
        compare(getattr(found, part.name), getattr(expected, part.name), part.name)


def compare(found: object, expected: object, name: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            compare(found[key], value, f"{name}.{key}")
    elif expected is None:
        assert found is None, name
    elif hasattr(expected, "offsets"):
        for part in fields(expected):
            compare(getattr(found, part.name), getattr(expected, part.name), f"{name}.{part.name}")
    else:
        np.testing.assert_array_equal(found.numpy(), expected.numpy(), err_msg=name)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_encoding_a_split_equals_what_prepare_stored(rich, code):
    folder, schema, data = rich
    split = data.split(("train", "valid", "test")[code])
    frame = raw_split(folder, schema, code)
    columns = Encoder.load(data.folder).encode(frame, labels=True)
    assert_same(data.batch(columns), split.slice(0, split.rows))
    texts = split.texts("title").to_pylist()
    assert columns.texts["title"].to_pylist() == texts == frame["title"].to_list()


def test_encoder_knows_the_fitted_schema(rich):
    data = rich[2]
    assert Encoder.load(data.folder).schema == data.schema


def test_ids_mean_what_the_vocabulary_says(rich):
    folder, schema, data = rich
    frame = raw_split(folder, schema, 2)
    batch = data.split("test").slice(0, frame.height)
    names = [field.name for field in data.schema.categorical]
    for field in ("user", "item", "city", "big"):
        table = pl.read_parquet(vocabulary_path(data.folder, field))
        known = dict(zip(table["value"].to_list(), table["index"].to_list(), strict=True))
        expected = [0 if v is None else known.get(v, 1) for v in frame[field].to_list()]
        assert batch.categorical[:, names.index(field)].tolist() == expected
    brand = pl.read_parquet(vocabulary_path(data.folder, "item_info.brand"))
    known = dict(zip(brand["value"].to_list(), brand["index"].to_list(), strict=True))
    brands = dict(zip(*item_frame().select("id", "brand").get_columns(), strict=True))
    kept = set(pl.read_parquet(vocabulary_path(data.folder, "item"))["value"])
    expected = [known.get(brands.get(v), 0) if v in kept else 0 for v in frame["item"].to_list()]
    assert batch.categorical[:, names.index("item_info.brand")].tolist() == expected


def test_text_and_integers_are_taken_for_each_other(rich):
    folder, schema, data = rich
    frame = raw_split(folder, schema, 1)
    text = frame.with_columns(pl.col("user", "big", "time", "age").cast(pl.String))
    encoder = Encoder.load(data.folder)
    found, expected = encoder.encode(text), encoder.encode(frame)
    np.testing.assert_array_equal(found.categorical, expected.categorical)
    np.testing.assert_array_equal(found.numeric, expected.numeric)
    floats = encoder.encode(frame.with_columns(pl.col("user").cast(pl.Float64)))
    np.testing.assert_array_equal(floats.categorical, expected.categorical)


def test_requests_need_no_labels_and_no_history(rich):
    data = rich[2]
    request = rich_frame(5, seed=9).drop("click", "buy", "stars", "weight", "fold", "title")
    columns = Encoder.load(data.folder).encode(request)
    assert columns.labels is None
    assert columns.weight is None
    assert columns.group is None
    assert columns.sequences["past"].offsets.tolist() == [0] * 6
    assert columns.sequences["past"].ids.shape == (0, 1)
    assert data.batch(columns).size == 5


def test_a_history_comes_as_list_columns(rich):
    data = rich[2]
    request = rich_frame(2, seed=9).with_columns(
        pl.Series("past.item", [["i1", "never seen"], []]),
        pl.Series("past.price", [[1.0, 2.0], []]),
        pl.Series("past.stars", [[5, 4], []]),
        pl.Series("past.time", [[10, 20], []]),
    )
    past = Encoder.load(data.folder).encode(request).sequences["past"]
    assert past.offsets.tolist() == [0, 2, 2]
    assert past.ids[1, 0] == 1
    assert past.time.tolist() == [10, 20]


def test_members_of_a_history_must_run_in_step(rich):
    request = rich_frame(2, seed=9).with_columns(pl.Series("past.item", [["i1"], []]))
    with pytest.raises(ValueError, match=r"sequence past, row 1: members must have one length"):
        Encoder.load(rich[2].folder).encode(request)


def test_unseen_values_and_no_rows(rich):
    encoder = Encoder.load(rich[2].folder)
    request = rich_frame(1, seed=9).with_columns(
        user=pl.lit("nobody"), item=pl.lit("nothing"), country=pl.lit("xx"), tags=pl.lit("unknown")
    )
    columns = encoder.encode(request)
    assert columns.categorical[0, :2].tolist() == [1, 1]
    assert columns.scenario.tolist() == [0]
    assert columns.sequences["tags"].ids.tolist() == [[1]]
    assert encoder.encode(request.head(0)).rows == 0


def test_a_request_has_a_time_where_its_column_is_there(rich):
    encoder = Encoder.load(rich[2].folder)
    request = rich_frame(2, seed=9).with_columns(hour=pl.lit(7))  # else it is made of the time
    assert encoder.encode(request).time.tolist() == request["time"].cast(pl.Int64).to_list()
    assert encoder.encode(request.drop("time")).time is None


def test_save_and_load_elsewhere(rich, tmp_path):
    folder, schema, data = rich
    encoder = Encoder.load(data.folder)
    encoder.save(tmp_path / "serving")
    again = Encoder.load(tmp_path / "serving")
    frame = raw_split(folder, schema, 1)
    assert again.schema == encoder.schema
    np.testing.assert_array_equal(
        again.encode(frame).categorical, encoder.encode(frame).categorical
    )


def test_missing_columns_and_artefacts_are_named(rich, tmp_path):
    encoder = Encoder.load(rich[2].folder)
    with pytest.raises(ValueError, match="no column city; the table has: user, item"):
        encoder.encode(rich_frame(2).drop("city"))
    encoder.save(tmp_path)
    (tmp_path / "transforms.json").write_text('{"kinds": 3}')
    with pytest.raises(ValueError, match=r"transforms.json is damaged"):
        Encoder.load(tmp_path)
    (tmp_path / "transforms.json").unlink()
    with pytest.raises(FileNotFoundError, match="transforms.json"):
        Encoder.load(tmp_path)


def test_transforms_are_plain_json(rich):
    text = (rich[2].folder / "transforms.json").read_text()
    transforms = Transforms.model_validate_json(text)
    assert transforms.scenarios == ("<unknown>", "de", "fr", "it")
    assert transforms.kinds["user"] == "integer"
    assert transforms.kinds["item"] == "text"
    assert transforms.numbers["numeric/price"].transform == "standardise"


def test_infinite_and_unreadable_numbers_name_their_row(rich):
    encoder = Encoder.load(rich[2].folder)
    frame = rich_frame(3)
    with pytest.raises(ValueError, match=r"column price, row 2: numbers must be finite"):
        encoder.encode(frame.with_columns(price=pl.Series([1.0, float("inf"), 2.0])))
    with pytest.raises(ValueError, match=r"column price, row 3: not a number: 'many'"):
        encoder.encode(frame.with_columns(price=pl.Series(["1", "2", "many"])))
    with pytest.raises(ValueError, match=r"column vector, row 1: a vector must have 3 numbers"):
        encoder.encode(frame.with_columns(vector=pl.lit("1 2")))
