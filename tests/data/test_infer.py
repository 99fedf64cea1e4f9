from pathlib import Path

import polars as pl
import pytest

from rankloom.data.infer import infer_schema
from rankloom.data.rows import open_rows
from rankloom.data.table_schema import (
    Categorical,
    LabelSpec,
    Numeric,
    RandomSplit,
    Sequence,
    TableInput,
    TableSchema,
    Text,
    TimeSplit,
    Vector,
    load_table_schema,
)


def infer(folder: Path, frame: pl.DataFrame) -> tuple[TableSchema, str]:
    frame.write_parquet(folder / "log.parquet")
    text = infer_schema(TableInput(files="log.parquet"), folder, 'a "log"')
    (folder / "schema.toml").write_text(text)
    found = load_table_schema(folder / "schema.toml")
    # What is proposed fits the table.
    assert sum(chunk.frame.height for chunk in open_rows(found, folder).chunks()) == frame.height
    return found, text


def test_kinds_go_by_type_cardinality_and_name(tmp_path: Path) -> None:
    n = 300
    frame = pl.DataFrame(
        {
            "user_id": [i % 50 for i in range(n)],
            "click": [i % 2 for i in range(n)],
            "bought": [None if i % 3 else i % 2 for i in range(n)],
            "price": [i / 7 for i in range(n)],
            "views": [i // 2 for i in range(n)],
            "weekday": [i % 7 for i in range(n)],
            "genres": ["a|b", "c", "b|c", "b"] * (n // 4),
            "review": [
                f"a rather long text that somebody wrote about it {i // 2}" for i in range(n)
            ],
            "tags": [["x"] * (i % 4) for i in range(n)],
            "embedding": [[0.1, float(i)] for i in range(n)],
            "timestamp": [1_000_000 + i for i in range(n)],
            "row id": list(range(n)),
            "empty": pl.Series([None] * n, dtype=pl.Int64),
            "same": ["q"] * n,
            "split": ["train", "test"] * (n // 2),
        }
    )
    found, text = infer(tmp_path, frame)
    assert found.name == 'a "log"'
    assert found.labels == {"click": LabelSpec()}
    assert found.features == {
        "user_id": Categorical(),
        "bought": Categorical(),
        "price": Numeric(transform="standardise"),
        "views": Numeric(transform="log"),
        "weekday": Categorical(),
        "genres": Sequence(separator="|"),
        "review": Text(),
        "tags": Sequence(max_length=3),
        "embedding": Vector(width=2),
    }
    assert found.roles.group == "user_id"
    assert found.roles.time == "timestamp"
    assert found.split == TimeSplit(column="timestamp")
    assert "# its name is a label's and it holds 0 and 1\n[labels.click]" in text
    assert "# Left out: row id: every row has a value of its own" in text
    assert "# Left out: empty: every value is missing" in text
    assert "# Left out: same: it always holds 'q'" in text
    assert "# Left out: split: it seems to name each row's split" in text


def test_ratings_need_a_threshold(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user": [1, 2] * 50, "item": ["a", "b"] * 50, "rating": [1, 3, 4, 5] * 25}
    )
    found, text = infer(tmp_path, frame)
    assert found.labels == {"rating": LabelSpec(threshold=4.0)}
    assert isinstance(found.split, RandomSplit)
    assert "a rating from 1 to 5; the threshold is a guess" in text


def test_without_a_label_name_the_first_binary_column_is_it(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item": [1, 2] * 50, "ok": [0, 1] * 50, "also": [1, 0] * 50})
    found, text = infer(tmp_path, frame)
    assert list(found.labels) == ["ok"]
    assert list(found.features) == ["item", "also"]
    assert "no column has a label's name" in text


def test_odd_names_and_input_options_survive(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text('1;a\n0;"b"\n1;a\n0;c\n')
    spec = TableInput(
        files="log.txt", format="csv", header=False, columns=("label", "x.y é\t"), separator=";"
    )
    text = infer_schema(spec, tmp_path, "log")
    (tmp_path / "schema.toml").write_text(text)
    found = load_table_schema(tmp_path / "schema.toml")
    assert found.input == spec
    assert list(found.features) == ["x.y é\t"]


def test_nothing_to_learn(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a", "b"], "x": [1.5, 2.5]}).write_parquet(tmp_path / "log.parquet")
    message = r"no column looks like a label \(a 0/1 column or a rating\); its columns are item, x"
    with pytest.raises(ValueError, match=message):
        infer_schema(TableInput(files="log.parquet"), tmp_path, "log")
    pl.DataFrame({"label": [0, 1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="no column looks like a feature"):
        infer_schema(TableInput(files="log.parquet"), tmp_path, "log")
    pl.DataFrame({"label": []}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log\.parquet has no rows"):
        infer_schema(TableInput(files="log.parquet"), tmp_path, "log")
