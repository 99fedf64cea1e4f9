from pathlib import Path

import polars as pl
import pytest

from rankloom.data.synthetic_criteo import (
    CARDINALITIES,
    MISSING_CATEGORIES,
    MISSING_INTEGERS,
    criteo_vocabularies,
    write_criteo,
)

NAMES = ["label", *(f"i{i}" for i in range(1, 14)), *(f"c{i}" for i in range(1, 27))]


def read(path: Path) -> pl.DataFrame:
    types = dict.fromkeys(NAMES[14:], pl.String)
    return pl.read_csv(
        path, separator="\t", has_header=False, new_columns=NAMES, schema_overrides=types
    )


def test_lines_are_in_the_raw_format(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    write_criteo(path, 40_000, seed=3)
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 40_000
    assert {line.count("\t") for line in lines} == {39}
    frame = read(path)
    assert set(frame["label"].unique()) == {0, 1}
    assert 0.2 < frame["label"].mean() < 0.3  # type: ignore[operator]
    for index, share in enumerate(MISSING_INTEGERS):
        column = frame[f"i{index + 1}"]
        assert column.dtype == pl.Int64
        assert abs(column.null_count() / 40_000 - share) < 0.02
    assert frame["i2"].min() < 0  # type: ignore[operator]
    for index in range(26):
        column = frame[f"c{index + 1}"]
        assert column.drop_nulls().str.contains("^[0-9a-f]{8}$").all()
        share = MISSING_CATEGORIES.get(index, 0.0)
        assert abs(column.null_count() / 40_000 - share) < 0.02
        assert column.drop_nulls().n_unique() <= CARDINALITIES[index]
    assert frame["c9"].n_unique() == 3


def test_a_longer_file_starts_like_a_shorter_one(tmp_path: Path) -> None:
    write_criteo(tmp_path / "a", 100, seed=1)
    write_criteo(tmp_path / "b", 40_000, seed=1)
    write_criteo(tmp_path / "c", 100, seed=2)
    short = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes().startswith(short)
    assert (tmp_path / "c").read_bytes() != short


def test_vocabularies_are_cut_to_the_total() -> None:
    sizes = criteo_vocabularies(1_000_000)
    assert 990_000 < sum(sizes) <= 1_000_000
    assert sizes[8] == 3
    assert max(sizes) == sizes[2] == sizes[11]
    assert criteo_vocabularies(10**9) == CARDINALITIES
    assert criteo_vocabularies(26) == (1,) * 26
    with pytest.raises(ValueError, match="at least 26; got 25"):
        criteo_vocabularies(25)


def test_the_categories_tell_about_the_label(tmp_path: Path) -> None:
    write_criteo(tmp_path / "train.txt", 40_000)
    frame = read(tmp_path / "train.txt")
    rates = frame.group_by("c6").agg(pl.col("label").mean(), pl.len()).filter(pl.col("len") > 1000)
    # Deviation of a rate of 0.23 over 1000 rows: 0.013.
    assert rates["label"].max() - rates["label"].min() > 0.08  # type: ignore[operator]
