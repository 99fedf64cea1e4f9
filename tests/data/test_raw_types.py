import polars as pl
import pytest

from rankloom.data.raw_types import check_present, distinct, plain_type, settle, to_types


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (pl.UInt8(), pl.Int64),
        (pl.Int32(), pl.Int64),
        (pl.Int128(), pl.String),
        (pl.Float32(), pl.Float64),
        (pl.Decimal(10, 2), pl.Float64),
        (pl.Boolean(), pl.Int64),
        (pl.Date(), pl.Int64),
        (pl.Datetime("ns"), pl.Int64),
        (pl.Categorical(), pl.String),
        (pl.Enum(["a"]), pl.String),
        (pl.List(pl.UInt16), pl.List(pl.Int64)),
        (pl.Array(pl.Float32, 3), pl.List(pl.Float32)),
        (pl.List(pl.List(pl.Int8)), pl.List(pl.List(pl.Int64))),
    ],
)
def test_plain_types(raw: pl.DataType, plain: pl.DataType) -> None:
    assert plain_type(raw) == plain
    assert plain_type(plain_type(raw)) == plain


def test_casts_keep_values_and_name_the_file_when_they_cannot() -> None:
    frame = pl.DataFrame({"x": [1.5, float("nan")], "v": [[1, 2], None]})
    types: dict[str, pl.DataType] = {"x": pl.Float64(), "v": pl.List(pl.Float32())}
    assert to_types(frame, types).rows() == [(1.5, [1.0, 2.0]), (None, None)]
    with pytest.raises(ValueError, match=r"b\.parquet: not the types of the first file"):
        to_types(pl.DataFrame({"x": ["q"]}), types, "b.parquet")


def test_declared_type_overrules_use_and_cells() -> None:
    assert settle(pl.Int64(), "text", "number") == (pl.String, pl.String)
    assert settle(pl.Int64(), None, "number") == (pl.Float64, pl.Float64)
    assert settle(pl.Boolean(), None, "number") == (pl.Boolean, pl.Float64)
    assert settle(pl.Float64(), None, "category") == (pl.String, pl.String)
    assert settle(pl.Int64(), None, "category") == (pl.Int64, pl.Int64)
    assert settle(pl.Boolean(), None, None) == (pl.Boolean, pl.Int64)


def test_missing_and_double_columns() -> None:
    check_present(["a"], ["a", "b"], "f.csv")
    with pytest.raises(ValueError, match=r"f\.csv has no column z; its columns are a, b"):
        check_present(["a", "z"], ["a", "b"], "f.csv")
    assert distinct(["a", "b"], "f.csv") == ["a", "b"]
    with pytest.raises(ValueError, match=r"f\.csv: column a is there more than once"):
        distinct(["a", "b", "a"], "f.csv")
