"""The table of items: sentences, side fields, vectors, and what is wrong with a table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.sequence_items import ItemTable
from rankloom.data.sequence_spec import ItemsInput
from rankloom.retrieval.items import Catalogue

FRAME = pl.DataFrame(
    {
        "id": [4, 2, 9],
        "title": ["  Red\n lamp ", None, "Really?"],
        "brand": ["Lux", "", "Lux"],
        "paths": [["Home > Light", "Gifts"], [], [None, "Toys"]],
        "year": [1999, None, 2001],
    },
    schema_overrides={"paths": pl.List(pl.String)},
)


def catalogue(folder: Path, frame: pl.DataFrame, **settings: object) -> Catalogue:
    frame.write_parquet(folder / "items.parquet")
    given = ItemsInput.model_validate({"files": "items.parquet", "id": "id"} | settings)
    table = ItemTable.read(given, folder)
    return table.catalogue(np.arange(len(table.ids)))


def test_texts_are_sentences_in_the_order_of_the_columns(tmp_path: Path) -> None:
    made = catalogue(tmp_path, FRAME, title="title", text=("title", "brand", "paths", "year"))
    assert made.ids == ["4", "2", "9"]
    assert made.titles == ["Red lamp", "", "Really?"]
    assert made.texts == [
        "Red lamp. Lux. Home > Light Gifts. 1999.",
        "",
        "Really? Lux. Toys. 2001.",
    ]
    turned = catalogue(tmp_path, FRAME, text=("brand", "title"))
    assert turned.texts == ["Lux. Red lamp.", "", "Lux. Really?"]


def test_attributes_are_numbers_from_one_and_lists_count_by_their_first_value(
    tmp_path: Path,
) -> None:
    frame = FRAME.with_columns(paths=pl.Series([["b", "a"], [], ["a"]]))
    made = catalogue(tmp_path, frame, attributes=("brand", "paths", "year"))
    assert made.attribute_names == ("brand", "paths", "year")
    assert made.attribute_labels == (("Lux",), ("b", "a"), ("1999", "2001"))
    assert made.attributes.tolist() == [[1, 1, 1], [0, 0, 0], [1, 2, 2]]


def test_labels_are_of_the_items_that_are_left(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "items.parquet")
    given = ItemsInput(files="items.parquet", id="id", attributes=("year",))
    made = ItemTable.read(given, tmp_path).catalogue(np.array([2]))
    assert (made.ids, made.attribute_labels) == (["9"], (("2001",),))


def test_vectors_need_one_width_and_no_gaps(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0], [0.0, 0.5], [3.0, -1.0]]
    made = catalogue(tmp_path, FRAME.with_columns(v=pl.Series(vectors)), vectors="v")
    assert made.vectors is not None
    assert made.vectors.tolist() == vectors
    short = FRAME.with_columns(v=pl.Series([[1.0, 2.0], [0.0, 0.5], [3.0]]))
    with pytest.raises(ValueError, match="item '4' has 2 numbers, item '9' has 1"):
        catalogue(tmp_path, short, vectors="v")
    gap = FRAME.with_columns(v=pl.Series([[1.0, 2.0], [0.0, None], [3.0, 1.0]]))
    with pytest.raises(ValueError, match="the vector of item '2' has a missing number"):
        catalogue(tmp_path, gap, vectors="v")
    with pytest.raises(ValueError, match="column brand must hold lists of numbers"):
        catalogue(tmp_path, FRAME, vectors="brand")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1], "item ids must differ; 1 are there several times, such as '1'"),
        ([1, None, 2], "row 2: column id has no value"),
        ([1.0, 2.5, 3.0], "column id holds 2.5, which is no id"),
        ([[1], [2], [3]], "column id holds lists"),
    ],
)
def test_bad_ids_are_told(tmp_path: Path, ids: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue(tmp_path, FRAME.with_columns(id=pl.Series(ids)))
