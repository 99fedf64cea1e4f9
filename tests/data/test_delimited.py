import polars as pl
import pytest

from rankloom.data.delimited import (
    Dialect,
    Place,
    cells_per_row,
    check_cells,
    infer_types,
    leading_zeros,
    parse_block,
)

CSV = Dialect(",", quoted=True, null_values=("", "NA"))
PLACE = Place("log.csv", 1000)
TYPES: dict[str, pl.DataType] = {"a": pl.Int64(), "b": pl.String(), "c": pl.Float64()}


def test_cells_are_counted_outside_quotes() -> None:
    block = b'1,"a,b\nc",2\n,,\n"x ""y"", z"\n1,2,3,4\n'
    assert cells_per_row(block, CSV).tolist() == [3, 3, 1, 4]
    plain = Dialect(",", quoted=False, null_values=())
    assert cells_per_row(block, plain).tolist() == [3, 2, 3, 2, 4]
    with pytest.raises(ValueError, match=r"log\.csv: row 1,002 has 1 cells, expected 3"):
        check_cells(block, 3, CSV, PLACE)


def test_parse_gives_the_asked_for_columns_in_order() -> None:
    frame = parse_block(b'1,"x,\ny",0.5\nNA,NA,\n', TYPES, ["c", "a", "b"], CSV, PLACE)
    assert frame.rows() == [(0.5, 1, "x,\ny"), (None, None, None)]
    assert parse_block(b"1,x,1\n\n2,y,2\n", TYPES, ["a"], CSV, PLACE)["a"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"1,x,1\n2,y,z\nq,y,1\n", r"row 1,001: column c holds 'z', expected a number"),
        (b"1,x,1\n2,y\n", r"row 1,001 has 2 cells, expected 3"),
        (b"1,x,1\n\nq,y,1\n", r"row 1,001: column a holds 'q', expected an integer"),
        (b"1,x,1\n9223372036854775808,y,1\n", r"column a holds '9223372036854775808', expected"),
        (b"1,x\xff,1\n", r"row 1,000 is not UTF-8 text: got byte 0xff"),
    ],
)
def test_errors_name_the_row(block: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_block(block, TYPES, ["a", "b", "c"], CSV, PLACE)


def test_types_come_from_every_row_when_the_first_mislead() -> None:
    rows = b"1,x\n" * 12_000
    assert infer_types(rows, ["a", "b"], CSV, PLACE) == {"a": pl.Int64, "b": pl.String}
    assert infer_types(rows + b"0.5,1\n", ["a", "b"], CSV, PLACE) == {
        "a": pl.Float64,
        "b": pl.String,
    }
    assert infer_types(rows + b"z,1\n", ["a", "b"], CSV, PLACE) == {"a": pl.String, "b": pl.String}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [(b"0\n10\n-3\n", False), (b"1\n01\n", True), (b"-0\n", True), (b"+5\n", True), (b"\n", False)],
)
def test_integers_that_would_not_read_back(cells: bytes, expected: bool) -> None:
    assert leading_zeros(cells, ["a"], "a", CSV) is expected


@pytest.mark.parametrize("block", [b"1,2\n3\n", b"1,2\n3\n4,5,6\n"])
def test_ragged_rows_are_found_while_types_are(block: bytes) -> None:
    with pytest.raises(ValueError, match="row 1,001 has 1 cells, expected 2"):
        infer_types(block, ["a", "b"], CSV, PLACE)
