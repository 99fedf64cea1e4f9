import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rankloom.data.rows import RowStream, open_rows
from rankloom.data.table_schema import TableSchema

LOG = pl.DataFrame(
    {
        "user": [1, 2, 1, 1, 2, 3, 1, 2],
        "item": ["a", "b", "b", "c", "a", "a", "d", "c"],
        "stars": [5, 4, 2, 5, 1, 3, 4, 5],
        "ts": [10, 10, 20, 30, 40, 50, 30, 60],
    }
)


def schema(**changes: Any) -> TableSchema:
    values: dict[str, Any] = {
        "name": "test",
        "input": {"files": "log.parquet"},
        "features": {"user": {"kind": "categorical"}, "item": {"kind": "categorical"}},
        "labels": {"like": {"column": "stars", "threshold": 4.0}},
        "split": {"kind": "random", "valid": 0.0, "test": 0.0},
        **changes,
    }
    return TableSchema.model_validate(values)


def rows_of(folder: Path, frame: pl.DataFrame = LOG, **changes: Any) -> RowStream:
    frame.write_parquet(folder / "log.parquet")
    return open_rows(schema(**changes), folder)


def collect(stream: RowStream, rows: int = 2**18) -> tuple[pl.DataFrame, list[int]]:
    chunks = list(stream.chunks(rows))
    split = np.concatenate([chunk.split for chunk in chunks])
    return pl.concat([chunk.frame for chunk in chunks]), split.tolist()


def test_only_needed_columns_are_there_in_input_order(tmp_path: Path) -> None:
    stream = rows_of(tmp_path, LOG.with_columns(unused=pl.lit("x")))
    assert stream.columns == ("user", "item", "stars")
    frame, split = collect(stream)
    assert_frame_equal(frame, LOG.select("user", "item", pl.col("stars").cast(pl.Float64)))
    assert split == [0] * 8


def test_derived_columns_may_be_features_and_order_the_split(tmp_path: Path) -> None:
    stream = rows_of(
        tmp_path,
        features={"hour": {"kind": "categorical"}, "item": {"kind": "categorical"}},
        derive=[
            {"name": "when", "source": "ts", "kind": "timestamp", "format": "unix_ms"},
            {"name": "hour", "source": "ts", "kind": "hour"},
            {"name": "minus", "source": "when", "kind": "day"},
        ],
        split={"kind": "leave_one_out", "user": "user", "time": "when"},
    )
    frame, split = collect(stream)
    assert stream.columns == ("item", "stars", "ts", "user", "when", "hour", "minus")
    assert frame["hour"].to_list() == [0] * 8
    # All times fall into one second, so that input order decides.
    assert split == [0, 0, 0, 1, 1, 0, 2, 2]


def test_history_by_hand(tmp_path: Path) -> None:
    history = {"name": "past", "user": "user", "time": "ts", "members": ["item", "stars"]}
    stream = rows_of(
        tmp_path,
        history=[
            {**history, "max_length": 2, "with_time": True},
            {**history, "name": "liked", "members": ["item"], "only_label": "like"},
        ],
        split={"kind": "time", "column": "ts", "valid": 0.2, "test": 0.2},
    )
    assert stream.columns[-4:] == ("past.item", "past.stars", "past.time", "liked.item")
    frame, split = collect(stream)
    assert split == [0, 0, 0, 1, 1, 2, 1, 2]
    # Rows 3 and 6 are of one time and do not see each other; training events are seen by all.
    past = [[], [], ["a"], ["a", "b"], ["b"], [], ["a", "b"], ["b", "a"]]
    assert frame["past.item"].to_list() == past
    assert frame["past.time"].to_list()[-1] == [10, 40]
    assert frame["past.stars"].to_list()[-1] == [4.0, 1.0]
    assert frame["liked.item"].to_list() == [[], [], ["a"], ["a"], ["b"], [], ["a"], ["b"]]


def test_negatives_follow_their_row_and_share_its_columns(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "labels": {"clicked": {}},
        "negatives": {"user": "user", "item": "item", "label": "clicked", "per_positive": 2},
        "history": [
            {"name": "past", "user": "user", "time": "ts", "members": ["item"]},
            {
                "name": "clicks",
                "user": "user",
                "time": "ts",
                "members": ["item"],
                "only_label": "clicked",
            },
        ],
        "split": {"kind": "leave_one_out", "user": "user", "time": "ts"},
    }
    stream = rows_of(tmp_path, **settings)
    frame, split = collect(stream)
    # User 1 has touched every item and gets none.
    assert frame["user"].to_list() == [1, 2, 2, 2, 1, 1, 2, 2, 2, 3, 3, 3, 1, 2, 2, 2]
    assert frame["clicked"].to_list() == [1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0]
    assert split == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 2]
    assert frame.filter(pl.col("user") == 2).filter(clicked=0)["item"].unique().to_list() == ["d"]
    assert frame["ts"].to_list()[1:4] == [10] * 3
    assert frame["past.item"].to_list()[-3:] == [["b", "a"]] * 3
    assert frame["clicks.item"].to_list() == frame["past.item"].to_list()
    positives = frame.filter(clicked=1)
    assert_frame_equal(positives.select("user", "item", "ts"), LOG.select("user", "item", "ts"))
    assert stream.notes == ("4 rows got no negatives: their 1 users have touched every item",)


def test_held_out_rows_may_have_other_numbers_of_negatives(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "labels": {"clicked": {}},
        "split": {"kind": "leave_one_out", "user": "user", "time": "ts"},
    }
    log = pl.DataFrame(
        {"user": [1] * 4 + [2] * 3, "item": list("abcdefg"), "ts": range(7), "stars": [1] * 7}
    )
    counts = {}
    for train, held_out in ((1, 3), (2, 1), (2, None)):
        negatives = {"user": "user", "item": "item", "label": "clicked", "per_positive": train}
        if held_out is not None:
            negatives["per_held_out"] = held_out
        frame, split = collect(rows_of(tmp_path, log, negatives=negatives, **settings), rows=3)
        drawn = frame.with_columns(split=pl.Series(split)).filter(clicked=0)
        counts[train, held_out] = drawn.group_by("ts").len().sort("ts")["len"].to_list()
        own = log.select("user", "item")
        assert drawn.join(own, on=["user", "item"]).height == 0
    # Rows 2 and 3 of user 1, and 5 and 6 of user 2, are held out.
    assert counts == {
        (1, 3): [1, 1, 3, 3, 1, 3, 3],
        (2, 1): [2, 2, 1, 1, 2, 1, 1],
        (2, None): [2] * 7,
    }


def test_rows_with_too_few_events_stay_events(tmp_path: Path) -> None:
    history = {"name": "past", "user": "user", "time": "ts", "members": ["item"], "min_length": 2}
    later = {"user": [2, 2], "item": ["d", "e"], "stars": [1, 1], "ts": [70, 80]}
    stream = rows_of(
        tmp_path,
        pl.concat([LOG, pl.DataFrame(later)]),
        features={"user": {"kind": "categorical"}, "ts": {"kind": "numeric"}},
        history=[history],
        negatives={"user": "user", "item": "item", "label": "hit"},
        labels={"hit": {}},
        split={"kind": "leave_one_out", "user": "user", "time": "ts"},
    )
    for rows in (2**18, 2):
        frame, split = collect(stream, rows)
        logged = frame.filter(hit=1)
        assert logged["user"].to_list() == [1, 1, 2, 2, 2]
        assert logged["ts"].to_list() == [30, 30, 60, 70, 80]
        assert logged["past.item"].to_list()[:3] == [["a", "b"], ["a", "b"], ["b", "a"]]
        assert logged["past.item"].to_list()[4] == ["b", "a", "c", "d"]
        # User 2 has touched every item and gets no negatives.
        assert frame["hit"].to_list() == [1, 0, 1, 0, 1, 1, 1]
        assert split == [1, 1, 2, 2, 0, 1, 2]
    assert stream.notes[0] == "5 rows have fewer than 2 events in past and are left out"
    with pytest.raises(ValueError, match="min_length must not be above max_length; got"):
        schema(history=[history | {"max_length": 1}])


def test_a_sample_of_users_comes_before_the_core_filter_and_the_draw(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "user": [number // 4 for number in range(400)],
            "item": [f"i{number}" for number in range(400)],
            "stars": [5] * 400,
            "ts": [number % 4 for number in range(400)],
        }
    )
    changes: dict[str, Any] = {
        "sample": {"column": "user", "share": 0.3, "seed": 1},
        "core": {"columns": {"user": 4}},
        "negatives": {"user": "user", "item": "item", "label": "hit"},
        "labels": {"hit": {}},
        "split": {"kind": "leave_one_out", "user": "user", "time": "ts"},
    }
    stream = rows_of(tmp_path, log, **changes)
    frame, split = collect(stream)
    users = frame["user"].unique()
    assert 15 <= len(users) <= 45
    assert frame.filter(hit=1).height == 4 * len(users)
    assert split.count(1) == split.count(2) == 2 * len(users)
    # Negatives are items of the sample.
    kept = log.filter(pl.col("user").is_in(users.implode()))
    assert frame["item"].is_in(kept["item"].implode()).all()
    assert stream.notes == (f"the sample and the core filter kept {kept.height} of 400 rows",)
    plain = collect(rows_of(tmp_path, log, sample=changes["sample"]))[0]
    assert plain["user"].unique().to_list() == users.to_list()


def test_a_filter_comes_before_everything_else(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "filter": {"columns": {"stars": [1, 4, 5]}},
        "core": {"columns": {"user": 3}},
        "history": [{"name": "past", "user": "user", "time": "ts", "members": ["item"]}],
        "split": {"kind": "leave_one_out", "user": "user", "time": "ts"},
    }
    stream = rows_of(tmp_path, **settings)
    for rows in (2**18, 2):
        frame, split = collect(stream, rows)
        # User 1's second row and all of user 3's have other stars.
        assert frame["user"].to_list() == [1, 2, 1, 2, 1, 2]
        assert frame["past.item"].to_list() == [[], [], ["a"], ["b"], ["a"], ["b", "a"]]
        assert split == [0, 0, 1, 1, 2, 2]
    assert stream.notes == ("the filter and the core filter kept 6 of 8 rows",)
    plain = collect(rows_of(tmp_path, filter={"columns": {"item": ["a", "d"]}}))[0]
    assert plain["item"].to_list() == ["a", "a", "a", "d"]
    with pytest.raises(ValueError, match=r"the filter \(item z\) leaves no rows"):
        rows_of(tmp_path, filter={"columns": {"item": ["z"]}})
    with pytest.raises(ValueError, match=r"log\.parquet has no column tab"):
        rows_of(tmp_path, filter={"columns": {"tab": [1]}})


def test_negatives_within_a_column_are_of_its_value(tmp_path: Path) -> None:
    log = LOG.with_columns(shop=pl.Series(["x", "x", "x", "x", "y", "y", "y", None]))
    negatives = {"user": "user", "item": "item", "label": "hit", "within": "shop"}
    changes = {"labels": {"hit": {}}, "negatives": negatives | {"per_positive": 4}}
    frame, _ = collect(rows_of(tmp_path, log.head(7), **changes))
    drawn = frame.filter(hit=0).select("shop", "user", "item")
    # Shop x has a, b and c, of which user 1 has all; shop y has a and d.
    free = {("x", 2, "a"), ("x", 2, "c"), ("y", 1, "a"), ("y", 2, "d"), ("y", 3, "d")}
    assert set(drawn.rows()) == free
    with pytest.raises(ValueError, match=r"log\.parquet: row 8: column shop has no value"):
        rows_of(tmp_path, log, **changes)


def test_core_filter_comes_first(tmp_path: Path) -> None:
    stream = rows_of(
        tmp_path,
        core={"columns": {"user": 3, "item": 2}},
        history=[{"name": "past", "user": "user", "time": "ts", "members": ["item"]}],
        split={"kind": "leave_one_out", "user": "user", "time": "ts"},
    )
    frame, split = collect(stream)
    # Item d and user 3 have too few rows; what is left of user 1 and 2 has three rows each.
    kept = LOG.filter((pl.col("item") != "d") & (pl.col("user") != 3))
    assert_frame_equal(frame.select("user", "item"), kept.select("user", "item"))
    assert split == [0, 0, 1, 2, 1, 2]
    assert frame["past.item"].to_list() == [[], [], ["a"], ["a", "b"], ["b"], ["b", "a"]]
    assert stream.notes == ("the core filter kept 6 of 8 rows",)


def test_files_split(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b", "c")):
        LOG.slice(index * 2, 2).write_csv(tmp_path / f"{name}.csv")
    split = {"kind": "files", "train": ["b.csv", "a.csv"], "valid": "c.csv"}
    history = {"name": "past", "user": "user", "time": "ts", "members": ["item"]}
    stream = open_rows(schema(input=None, split=split, history=[history]), tmp_path)
    frame, codes = collect(stream)
    assert codes == [0, 0, 0, 0, 1, 1]
    assert frame["item"].to_list() == ["b", "c", "a", "b", "a", "a"]
    assert frame["past.item"].to_list()[:2] == [["a"], ["a", "b"]]
    drawn = {"kind": "files", "train": ["b.csv", "a.csv"], "test": "c.csv", "valid_share": 0.5}
    for seed in range(3):
        share = schema(input=None, split=drawn | {"seed": seed})
        codes = collect(open_rows(share, tmp_path), rows=2)[1]
        assert codes[4:] == [2, 2]
        assert set(codes[:4]) == {0, 1}, seed
    # Users 1, 2 and 3 have four, three and one of the eight rows.
    LOG.write_csv(tmp_path / "d.csv")
    drawn = {"kind": "files", "train": "d.csv", "valid_share": 0.5, "valid_by": "user", "seed": 1}
    users = open_rows(schema(input=None, split=drawn), tmp_path)
    frame, codes = collect(users)
    sides = frame.select("user", side=pl.Series(codes)).unique()
    assert sides["user"].is_unique().all()
    assert sides["side"].n_unique() == 2
    assert all(collect(users, rows)[1] == codes for rows in (1, 3))
    columns = "d.csv has no column past.item; its columns are user, item, stars, ts"
    by = {**drawn, "valid_by": "past.item"}
    for changes in ({}, {"history": [history]}):
        with pytest.raises(ValueError, match=re.escape(columns)):
            open_rows(schema(input=None, split=by, **changes), tmp_path)
    with pytest.raises(ValueError, match=r"b\.csv is in two splits; a file belongs to one"):
        open_rows(schema(split={**split, "valid": "b.csv"}), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.csv"):
        open_rows(schema(split={**split, "test": "gone.csv"}), tmp_path)


def test_column_split_and_its_error(tmp_path: Path) -> None:
    part = pl.Series("part", ["train"] * 5 + ["test"] * 3)
    split = {"kind": "column", "column": "part"}
    stream = rows_of(tmp_path, LOG.with_columns(part), split=split)
    assert collect(stream, rows=3)[1] == [0] * 5 + [2] * 3
    stream = rows_of(tmp_path, LOG.with_columns(part.set(part == "test", "x")), split=split)
    with pytest.raises(ValueError, match=r"log\.parquet: row 6: split column part holds 'x'"):
        collect(stream, rows=4)


OPTIONS: list[dict[str, Any]] = [
    {"split": {"kind": "random", "valid": 0.3, "test": 0.3, "seed": 3}},
    {"split": {"kind": "random", "valid": 0.3, "test": 0.3, "stratify": "item"}},
    {"split": {"kind": "time", "column": "ts", "valid": 0.2, "test": 0.3}},
    {"split": {"kind": "time", "column": "ts", "valid": 0.3, "test": 0.3, "within": "user"}},
    {"split": {"kind": "leave_one_out", "user": "user", "time": "ts"}},
    {"core": {"columns": {"user": 2, "item": 2}}},
    {
        "core": {"columns": {"user": 2}},
        "sample": {"column": "item", "share": 0.7},
        "history": [
            {"name": "h", "user": "user", "time": "ts", "members": ["item"], "min_length": 1}
        ],
    },
    {
        "labels": {"hit": {}},
        "negatives": {"user": "user", "item": "item", "label": "hit", "per_positive": 3},
        "core": {"columns": {"user": 2}},
        "history": [{"name": "h", "user": "user", "time": "ts", "members": ["item"]}],
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=[next(iter(option)) for option in OPTIONS])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_row_once_whatever_the_chunk_size(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], data: st.DataObject
) -> None:
    size = data.draw(st.integers(30, 60))
    number = st.integers(0, 4)
    log = pl.DataFrame(
        {
            "user": data.draw(st.lists(number, min_size=size, max_size=size)),
            "item": [
                f"i{value}" for value in data.draw(st.lists(number, min_size=size, max_size=size))
            ],
            "stars": [1] * size,
            "ts": list(range(size)),
        }
    )
    folder = tmp_path_factory.mktemp("rows")
    try:
        stream = rows_of(
            folder, log, features={**schema().features, "ts": {"kind": "numeric"}}, **options
        )
        frame, split = collect(stream)
    except ValueError as error:
        # Few rows may leave a split or the core without any; anything else is a fault.
        if not ("is empty" in str(error) or "leaves no rows" in str(error)):
            raise
        return
    for rows in (1, 4, data.draw(st.integers(2, 70))):
        again, codes = collect(stream, rows)
        assert_frame_equal(again, frame)
        assert codes == split
        assert max(chunk.frame.height for chunk in stream.chunks(rows)) <= max(rows, 4)
    if "core" not in options:
        assert frame["ts"].to_list() == log["ts"].to_list()
    assert set(split) <= {0, 1, 2}
    if "hit" in frame.columns:
        own = log.select("user", "item").unique()
        drawn = frame.filter(hit=0)
        assert drawn.join(own, on=["user", "item"]).height == 0
        users = frame.group_by("user").agg(pl.col("hit").mean()).filter(pl.col("hit") < 1)
        assert users["hit"].to_list() == [0.25] * users.height


def test_csv_and_parquet_give_the_same_stream(tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    changes: dict[str, Any] = OPTIONS[-1] | {"features": {"ts": {"kind": "numeric"}}}
    parquet = collect(rows_of(tmp_path, **changes))
    text = collect(open_rows(schema(input={"files": "log.csv"}, **changes), tmp_path))
    assert_frame_equal(parquet[0], text[0])
    assert parquet[1] == text[1]


def test_errors(tmp_path: Path) -> None:
    by_time = {"kind": "time", "column": "ts"}
    with pytest.raises(ValueError, match=r"has no column gone; its columns are user, item, stars"):
        rows_of(tmp_path, roles={"group": "gone"})
    with pytest.raises(ValueError, match="has a column item already"):
        rows_of(tmp_path, derive=[{"name": "item", "source": "ts", "kind": "day"}])
    with pytest.raises(ValueError, match="create x twice"):
        rows_of(tmp_path, derive=[{"name": "x", "source": "ts", "kind": "day"}] * 2)
    hole = LOG.with_columns(pl.Series("ts", [1, 2, 3, None, 5, 6, 7, 8]))
    with pytest.raises(ValueError, match="log.parquet: row 4: column ts has no value"):
        rows_of(tmp_path, hole, split=by_time)
    with pytest.raises(ValueError, match="column item orders rows and must hold numbers"):
        rows_of(tmp_path, split={"kind": "time", "column": "item"})
    with pytest.raises(ValueError, match=r"the train split \(kind time\) is empty: 8 rows gave"):
        rows_of(tmp_path, LOG.with_columns(ts=pl.lit(1)), split=by_time)
    with pytest.raises(ValueError, match=r"the test split \(kind random\) is empty"):
        list(rows_of(tmp_path, split={"kind": "random", "valid": 0, "test": 1e-9}).chunks())
    history = {"name": "h", "user": "user", "time": "ts", "members": ["item"], "only_label": "x"}
    with pytest.raises(ValueError, match="no label x; the labels are like"):
        rows_of(tmp_path, history=[history])
    with pytest.raises(ValueError, match=r"log\.parquet has no rows"):
        list(rows_of(tmp_path, LOG.clear()).chunks())
    with pytest.raises(ValueError, match=r"log\.parquet has no rows"):
        rows_of(tmp_path, LOG.clear(), split=by_time)
    negatives = {"user": "user", "item": "item", "label": "hit"}
    hole = LOG.with_columns(item=pl.when(pl.col("item") != "b").then("item"))
    with pytest.raises(ValueError, match="log.parquet: row 2: column item has no value"):
        rows_of(tmp_path, hole, negatives=negatives)


def test_files_that_change_while_they_are_read(tmp_path: Path) -> None:
    stream = rows_of(tmp_path, split={"kind": "time", "column": "ts"})
    LOG.head(7).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="held 8 rows when they were opened and 7 now"):
        list(stream.chunks())


def test_missing_users_and_items_in_histories(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {"user": [1, None, 1, None, 1], "item": ["a", "b", None, "c", "d"], "ts": [1, 2, 3, 4, 5]}
    ).with_columns(stars=pl.lit(5))
    history = {"name": "h", "user": "user", "time": "ts", "members": ["item"]}
    frame, _ = collect(rows_of(tmp_path, log, history=[history]))
    assert frame["h.item"].to_list() == [[], [], ["a"], [], ["a"]]


def test_all_labels_missing_gives_empty_histories(tmp_path: Path) -> None:
    log = LOG.with_columns(stars=pl.lit(None, dtype=pl.Int64))
    history = {
        "name": "h",
        "user": "user",
        "time": "ts",
        "members": ["item"],
        "only_label": "like",
    }
    frame, _ = collect(rows_of(tmp_path, log, history=[history]))
    assert frame["h.item"].to_list() == [[]] * 8
