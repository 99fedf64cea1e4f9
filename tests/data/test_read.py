import gzip
import json
import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from rankloom.data import read, text_readers
from rankloom.data.raw_types import Kind
from rankloom.data.read import open_table
from rankloom.data.table_schema import TableInput

BIG = 2**53 + 1


def write(folder: Path, name: str, text: str) -> str:
    data = text.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    (folder / name).write_bytes(data)
    return name


def table(folder: Path, name: str, text: str, **options: object) -> read.RawTable:
    spec = TableInput.model_validate({"files": write(folder, name, text), **options})
    return open_table(spec, folder)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_csv_with_header_and_compression(tmp_path: Path, ending: str) -> None:
    text = f"user,price,city\n{2**31},1.5,Ulm\n{BIG},,\n-7,nan,Köln\n"
    name = write(tmp_path, f"log.csv{ending}", text)
    found = open_table(TableInput(files=name), tmp_path, kinds={"price": "number"})
    assert found.columns == {"user": pl.Int64, "price": pl.Float64, "city": pl.String}
    assert found.collect().rows() == [(2**31, 1.5, "Ulm"), (BIG, None, None), (-7, None, "Köln")]


def test_tsv_without_header_needs_names(tmp_path: Path) -> None:
    found = table(tmp_path, "log.tsv", "1\ta\n0\tb", header=False, columns=("label", "c"))
    assert found.collect().rows() == [(1, "a"), (0, "b")]
    with pytest.raises(ValueError, match="without header needs columns"):
        table(tmp_path, "log.tsv", "1\ta\n", header=False)


def test_asked_for_columns_come_in_that_order(tmp_path: Path) -> None:
    found = table(tmp_path, "log.csv", "a,b,c\n1,2,x\n3,4,y\n")
    assert found.collect(["c", "a"]).rows() == [("x", 1), ("y", 3)]
    assert [frame.height for frame in found.chunks([], rows=1)] == [1, 1]


def test_long_separator_null_values_and_boolean(tmp_path: Path) -> None:
    text = "a::b::c::d\n1::NA::true::x\n2::5::false::NA\n"
    found = table(tmp_path, "log.dat", text, format="csv", separator="::", null_values=("", "NA"))
    assert found.collect().rows() == [(1, None, 1, "x"), (2, 5, 0, None)]


def test_quoted_cells_blank_lines_mark_and_windows_ends(tmp_path: Path) -> None:
    text = '\ufeffid,title\r\n1,"a, b"\r\n2,"two\nlines"\r\n3,"say ""x"""\r\n\r\n'
    assert table(tmp_path, "a.csv", text).collect().rows() == [
        (1, "a, b"),
        (2, "two\nlines"),
        (3, 'say "x"'),
    ]
    assert table(tmp_path, "b.csv", "a,b\n1,2\n\n\n3,4\n\n").collect().rows() == [(1, 2), (3, 4)]


def test_numbers_beyond_64_bits_are_text(tmp_path: Path) -> None:
    found = table(tmp_path, "log.csv", f"id,n\n{2**63},{2**63 - 1}\n5,6\n")
    assert found.collect().rows() == [(str(2**63), 2**63 - 1), ("5", 6)]
    pq.write_table(pa.table({"id": pa.array([2**64 - 1], pa.uint64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": pa.array([BIG], pa.uint64())}), tmp_path / "b.parquet")
    assert open_table(TableInput(files="a.parquet"), tmp_path).collect().rows() == [
        (str(2**64 - 1),)
    ]
    assert open_table(TableInput(files="b.parquet"), tmp_path).collect().rows() == [(BIG,)]


def test_kinds_settle_doubtful_types(tmp_path: Path) -> None:
    text = "zip,site,score,count\n0123,1e5,7,3\n9999,2,8,4\n"
    name = write(tmp_path, "log.csv", text)
    plain = open_table(TableInput(files=name), tmp_path)
    assert list(plain.columns.values()) == [pl.Int64, pl.Float64, pl.Int64, pl.Int64]
    kinds: dict[str, Kind] = {"zip": "category", "site": "category", "score": "number"}
    found = open_table(TableInput(files=name, types={"count": "text"}), tmp_path, kinds=kinds)
    assert found.collect().rows() == [("0123", "1e5", 7.0, "3"), ("9999", "2", 8.0, "4")]


@pytest.mark.parametrize("quoted", [False, True])
def test_small_blocks_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: bool
) -> None:
    draw = random.Random(0)
    texts = ['"a,\nb"', '"q""q"', "plain", ""] if quoted else ["plain", "x", ""]
    lines = [f"{draw.randrange(10**9)},{draw.choice(texts)},{draw.random()}" for _ in range(300)]
    name = write(tmp_path, "log.csv", "id,text,x\n" + "\n".join(lines))
    whole = open_table(TableInput(files=name), tmp_path).collect()
    monkeypatch.setattr(text_readers, "BLOCK_BYTES", 97)
    found = open_table(TableInput(files=name), tmp_path)
    assert_frame_equal(pl.concat(found.chunks(rows=7)), whole)
    assert whole.height == 300
    assert max(frame.height for frame in found.chunks(rows=2)) == 2


def test_list_glob_and_other_column_order(tmp_path: Path) -> None:
    write(tmp_path, "part-1.csv", "a,b\n1,x\n")
    write(tmp_path, "part-2.csv", "b,extra,a\ny,9,2\n")
    for files in ("part-*.csv", ("part-1.csv", "part-2.csv")):
        assert open_table(TableInput(files=files), tmp_path).collect().rows() == [
            (1, "x"),
            (2, "y"),
        ]
    backwards = open_table(TableInput(files=("part-2.csv", "part-1.csv")), tmp_path)
    assert backwards.collect(["a"]).rows() == [(2,), (1,)]


def test_parquet_types_become_plain(tmp_path: Path) -> None:
    day = 86_400
    frame = pl.DataFrame(
        {
            "small": pl.Series([1, None], dtype=pl.Int8),
            "half": pl.Series([0.5, float("nan")], dtype=pl.Float32),
            "flag": [True, None],
            "kind": pl.Series(["a", "b"], dtype=pl.Categorical),
            "when": pl.Series([day, 2 * day + 1]).cast(pl.Datetime("ms"), strict=True),
            "ids": pl.Series([[1, 2], []], dtype=pl.List(pl.Int32)),
            "vector": pl.Series([[0.5], [1.5]], dtype=pl.List(pl.Float32)),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    found = open_table(TableInput(files="t.parquet"), tmp_path)
    assert found.collect(["small", "half", "flag", "kind", "when", "ids"]).rows() == [
        (1, 0.5, 1, "a", 86, [1, 2]),
        (None, None, None, "b", 172, []),
    ]
    assert found.columns["ids"] == pl.List(pl.Int64)
    assert found.columns["vector"] == pl.List(pl.Float32)
    assert dict(found.collect().schema) == found.columns


def test_later_parquet_file_takes_the_types_of_the_first(tmp_path: Path) -> None:
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "0.parquet")
    pl.DataFrame({"id": [5]}).write_parquet(tmp_path / "1.parquet")
    spec = TableInput(files=("0.parquet", "1.parquet"))
    assert open_table(spec, tmp_path).collect().rows() == [("a",), ("5",)]
    spec = TableInput(files=("1.parquet", "0.parquet"))
    with pytest.raises(ValueError, match=r"0\.parquet: not the types of the first file"):
        open_table(spec, tmp_path).collect()


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"id": BIG, "tags": ["a", "b"]}, {"id": None, "x": 0.5}, {"tags": []}]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    found = table(tmp_path, "log.jsonl.gz", text)
    assert found.collect().rows() == [(BIG, ["a", "b"], None), (None, None, 0.5), (None, [], None)]
    assert found.collect(["x", "id"]).rows() == [(None, BIG), (0.5, None), (None, None)]


def test_entries_give_ids_or_values(tmp_path: Path) -> None:
    text = "1 17:1 900:0.5 3:1\n-1 5:1  900:2 3:1 \n"
    found = table(tmp_path, "log.libsvm", text, fields=("user", "price", "flag"))
    assert found.collect().rows() == [(1.0, 17, 0.5, 3), (0.0, 5, 2.0, 3)]
    assert found.columns["user"] == pl.Int64
    assert found.columns["price"] == pl.Float64
    mixed = "1 5:1 7:2\n0 6:1 8:1\n"
    with pytest.raises(ValueError, match=r"field b has several ids and values other than 1; say"):
        table(tmp_path, "log.libfm", mixed, fields=("a", "b"))
    found = table(tmp_path, "log.libfm", mixed, fields=("a", "b"), types={"b": "integer"})
    assert found.collect(["b"]).rows() == [(7,), (8,)]
    found = table(tmp_path, "log.libfm", mixed, fields=("a", "b"), types={"b": "number"})
    assert found.collect(["b"]).rows() == [(2.0,), (1.0,)]
    with pytest.raises(ValueError, match=r"row 2 has 3 cells, expected 5"):
        table(tmp_path, "log.libfm", "1 5:1 7:1\n0 6:1\n", fields=("a", "b"))
    with pytest.raises(ValueError, match="need fields"):
        table(tmp_path, "log.libfm", mixed)


def test_entries_that_break_the_rule_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_readers, "BLOCK_BYTES", 16)
    text = "1 5:1 7:2.5\n0 6:1 7:1.5\n" * 4
    good = table(tmp_path, "a.libsvm", text, fields=("a", "b"))
    assert good.collect().height == 8
    bad_id = table(tmp_path, "b.libsvm", text + "1 5:3 7:1\n", fields=("a", "b"))
    with pytest.raises(ValueError, match=r"b\.libsvm: row 9: field a holds 5:3\.0, but so far"):
        bad_id.collect()
    bad_value = table(tmp_path, "c.libsvm", text + "1 5:1 8:1\n", fields=("a", "b"))
    with pytest.raises(ValueError, match="row 9: field b holds 8:1.0, but so far every id was 7"):
        bad_value.collect()


def test_wrong_type_in_a_later_block_names_file_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_readers, "BLOCK_BYTES", 64)
    rows = "".join(f"{i},{i}.5\n" for i in range(1233))
    for bad, message in [
        ("abc,1.0", r"train\.csv: row 1,234: column I3 holds 'abc', expected an integer"),
        ("1.5,1.0", r"train\.csv: row 1,234: column I3 holds '1\.5', expected an integer"),
        ("1,zz", r"train\.csv: row 1,234: column x holds 'zz', expected a number"),
        ("1", r"train\.csv: row 1,234 has 1 cells, expected 2"),
        ("1,2,3", r"train\.csv: row 1,234 has 3 cells, expected 2"),
    ]:
        found = table(tmp_path, "train.csv", f"I3,x\n{rows}{bad}\n7,8.0\n")
        with pytest.raises(ValueError, match=message):
            found.collect()
    # A column that nobody asks for is not judged.
    found = table(tmp_path, "train.csv", f"I3,x\n{rows}abc,1\n")
    assert found.collect(["x"]).height == 1234


def test_ragged_rows_beside_quotes_are_found(tmp_path: Path) -> None:
    text = 'a,b\n1,"x,y"\n2\n3,z\n'
    with pytest.raises(ValueError, match="row 2 has 1 cells, expected 2"):
        table(tmp_path, "log.csv", text)
    # A long and a short row would hide each other from a plain count.
    with pytest.raises(ValueError, match="row 1 has 3 cells, expected 2"):
        table(tmp_path, "log.csv", "a,b\n1,2,3\n4\n")


def test_wrong_json_names_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_readers, "BLOCK_BYTES", 32)
    good = '{"a": 1}\n' * 20
    for bad, message in [
        ('{"a": "q"}', r"log\.jsonl: row 21: column a holds 'q', expected an integer"),
        ('{"a": ', r"row 21 is not JSON"),
        ("[1, 2]", r"row 21 is not a JSON object"),
    ]:
        found = table(tmp_path, "log.jsonl", f"{good}{bad}\n")
        with pytest.raises(ValueError, match=message):
            found.collect()
    with pytest.raises(ValueError, match="row 1 is not JSON"):
        table(tmp_path, "log.jsonl", "{\n")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*gone.csv"):
        open_table(TableInput(files="gone.csv"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file matches .*part-\*.csv"):
        open_table(TableInput(files="part-*.csv"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no files are given"):
        open_table(TableInput(files=()), tmp_path)
    for name in ("log.csv", "log.parquet", "log.jsonl", "log.libsvm"):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            table(tmp_path, name, "", fields=("a",))
    with pytest.raises(ValueError, match="has a header but no rows"):
        table(tmp_path, "log.csv", "a,b\n")
    with pytest.raises(
        ValueError, match=r"unknown format, ending '\.dat'; set format in \[input\]"
    ):
        table(tmp_path, "log.dat", "a\n1\n")
    with pytest.raises(
        ValueError, match=r"log\.csv: column a is there more than once; if the first"
    ):
        table(tmp_path, "log.csv", "a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="column a is there more than once"):
        table(tmp_path, "log.tsv", "1\t2\n", header=False, columns=("a", "a"))
    with pytest.raises(ValueError, match="has no column z, y; its columns are a, b"):
        table(tmp_path, "log.csv", "a,b\n1,2\n").collect(["a", "z", "y"])
    with pytest.raises(ValueError, match=r"is not a parquet file"):
        table(tmp_path, "log.parquet", "a,b\n1,2\n")
    with pytest.raises(ValueError, match="files of a table need one format; got csv, tsv"):
        table(tmp_path, "log.csv", "a\n1\n", files=("log.csv", write(tmp_path, "l.tsv", "a\n1\n")))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_damaged_compression(tmp_path: Path, ending: str) -> None:
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(5000))
    name = write(tmp_path, f"log.csv.{ending}", text)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"log.csv.{ending}: the compressed data is damaged"):
        open_table(TableInput(files=name), tmp_path).collect()


def test_second_file_without_a_column(tmp_path: Path) -> None:
    write(tmp_path, "1.csv", "a,b\n1,2\n")
    write(tmp_path, "2.csv", "a\n1\n")
    found = open_table(TableInput(files=("1.csv", "2.csv")), tmp_path)
    assert found.collect(["a"]).height == 2
    with pytest.raises(ValueError, match=r"2\.csv has no column b; its columns are a"):
        found.collect()
