from typing import Any

import pytest

from rankloom.data.table_schema import TableSchema
from rankloom.data.usage import (
    column_kinds,
    created_columns,
    feature_kinds,
    label_column,
    raw_columns,
    split_keys,
)


def schema(**changes: Any) -> TableSchema:
    values: dict[str, Any] = {
        "name": "test",
        "input": {"files": "log.csv"},
        "features": {
            "site": {"kind": "categorical"},
            "I1": {"kind": "numeric"},
            "I1_bin": {"kind": "categorical", "column": "I1", "transform": "quantile"},
            "age": {"kind": "numeric"},
            "age_group": {"kind": "categorical", "column": "age"},
            "emb": {"kind": "vector", "width": 2},
            "genres": {"kind": "sequence"},
        },
        "labels": {"click": {}, "like": {"column": "stars", "threshold": 4.0}},
        "roles": {"scenario": "page", "group": "user", "time": "ts", "weight": "w"},
        **changes,
    }
    return TableSchema.model_validate(values)


def test_kinds_where_all_uses_agree() -> None:
    found = schema(split={"kind": "column", "column": "part"})
    assert column_kinds(found) == {
        "site": "category",
        "I1": "number",
        "genres": "category",
        "click": "number",
        "stars": "number",
        "page": "category",
        "user": "category",
        "w": "number",
        "part": "category",
    }
    assert feature_kinds({"x": found.features["I1"]}) == {"x": "number"}


def test_raw_columns_leave_out_what_is_created() -> None:
    found = schema(
        derive=[{"name": "hour", "source": "ts", "kind": "hour"}],
        negatives={"user": "user", "item": "site", "label": "click"},
        history=[
            {
                "name": "past",
                "user": "member",
                "time": "when",
                "members": ["site", "hour"],
                "with_time": True,
            }
        ],
        sequence_groups={"past": {"members": {"site": {"column": "past.site"}}}},
        core={"columns": {"shop": 2}},
        split={"kind": "time", "column": "ts", "within": "buyer"},
    )
    assert created_columns(found) == ["hour", "click", "past.site", "past.hour", "past.time"]
    expected = "site I1 age emb genres stars page user ts w buyer shop member when"
    assert raw_columns(found) == expected.split()


def test_split_keys() -> None:
    for split, keys in [
        ({"kind": "random"}, []),
        ({"kind": "random", "stratify": "click"}, ["click"]),
        ({"kind": "time", "column": "t"}, ["t"]),
        ({"kind": "time", "column": "t", "within": "u"}, ["t", "u"]),
        ({"kind": "leave_one_out", "user": "u", "time": "t"}, ["u", "t"]),
        ({"kind": "column", "column": "part"}, []),
        ({"kind": "files", "train": "a.csv"}, []),
    ]:
        assert split_keys(schema(split=split)) == keys


def test_labels_by_name() -> None:
    assert label_column(schema(), "like") == "stars"
    assert label_column(schema(), "click") == "click"
    with pytest.raises(ValueError, match="no label buy; the labels are click, like"):
        label_column(schema(), "buy")
