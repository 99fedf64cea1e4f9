"""Raw tables to sequences: order, ties, unknown items, repeats, k-core, and a slow reference."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rankloom.data.sequences import (
    SequenceData,
    SequenceSpec,
    load_sequence_spec,
    prepare_sequences,
    read_sequences,
)

LOG = """\
user,item,time
b,x,30
a,y,20
b,y,10
a,x,20
a,z,5
b,x,40
"""
ITEMS = "id,name\nx,Lamp\ny,Chair\nz,Table\nw,Stool\n"


def spec(folder: Path, log: str = LOG, items: str | None = ITEMS, **rules: Any) -> SequenceSpec:
    (folder / "log.csv").write_text(log)
    values: dict[str, Any] = {
        "name": "shop",
        "interactions": {"files": "log.csv", "user": "user", "item": "item"} | rules,
    }
    if items is not None:
        (folder / "items.csv").write_text(items)
        values["items"] = {"files": "items.csv", "id": "id", "title": "name", "text": ["name"]}
    return SequenceSpec.model_validate(values)


def sequences(data: SequenceData) -> dict[str, list[str]]:
    return {
        user: data.catalogue.ids_of(data.histories.of(place))
        for place, user in enumerate(data.users)
    }


def test_events_are_ordered_by_time_and_ties_by_the_file(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path, time="time"), root=tmp_path)
    assert sequences(data) == {"b": ["y", "x", "x"], "a": ["z", "y", "x"]}
    assert data.users == ["b", "a"]  # as the file has them
    assert data.catalogue.ids == ["x", "y", "z", "w"]
    assert data.catalogue.titles == ["Lamp", "Chair", "Table", "Stool"]
    assert data.catalogue.texts[0] == "Lamp."
    assert data.histories.counts().tolist() == [3, 2, 1, 0]


def test_without_a_time_the_order_is_that_of_the_files(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path), root=tmp_path)
    assert sequences(data) == {"b": ["x", "y", "x"], "a": ["y", "x", "z"]}


def test_first_of_repeats_is_the_oldest_one(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path, time="time", repeats="first"), root=tmp_path)
    assert sequences(data) == {"b": ["y", "x"], "a": ["z", "y", "x"]}


def test_iso_times_are_read_and_others_are_an_error_with_its_row(tmp_path: Path) -> None:
    log = "user,item,time\na,x,2024-10-02\na,y,2024-09-30 08:00:00\na,z,2024-09-30T07:59:59Z\n"
    data = read_sequences(spec(tmp_path, log, time="time"), root=tmp_path)
    assert sequences(data) == {"a": ["z", "y", "x"]}
    broken = spec(tmp_path, log + "a,x,yesterday\n", time="time")
    numbers = spec(tmp_path, "user,item,time\na,x,2.5\na,y,nan\na,z,1\n", time="time")
    with pytest.raises(ValueError, match=r"row 2: column time orders events .* got 'nan'"):
        read_sequences(numbers, root=tmp_path)
    broken = spec(tmp_path, log + "a,x,yesterday\n", time="time")
    with pytest.raises(ValueError, match=r"row 4: column time orders events .* got 'yesterday'"):
        read_sequences(broken, root=tmp_path)


def test_a_missing_user_item_or_time_is_an_error_with_its_row(tmp_path: Path) -> None:
    for column, row in (("user", ",x,7"), ("item", "a,,7"), ("time", "a,x,")):
        wrong = spec(tmp_path, LOG + row + "\n", time="time")
        with pytest.raises(ValueError, match=rf"log.csv: row 7: column {column}"):
            read_sequences(wrong, root=tmp_path)


def test_unknown_items_are_counted_and_named_or_dropped(tmp_path: Path) -> None:
    log = LOG + "a,new,50\nc,new,51\nc,other,52\n"
    with pytest.raises(ValueError, match=r"lacks 2 of .* such as 'new' \(3 events in all\)"):
        read_sequences(spec(tmp_path, log, time="time"), root=tmp_path)
    dropped = read_sequences(spec(tmp_path, log, time="time", unknown_items="drop"), root=tmp_path)
    assert sequences(dropped) == {"b": ["y", "x", "x"], "a": ["z", "y", "x"]}


def test_k_core_takes_items_out_of_the_catalogue(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path, time="time", min_count=2), root=tmp_path)
    assert sequences(data) == {"b": ["y", "x", "x"], "a": ["y", "x"]}
    assert data.catalogue.ids == ["x", "y"]
    assert data.catalogue.titles == ["Lamp", "Chair"]
    with pytest.raises(ValueError, match="leaves no rows"):
        read_sequences(spec(tmp_path, min_count=5), root=tmp_path)


def test_only_seen_items_can_be_kept(tmp_path: Path) -> None:
    full = spec(tmp_path)
    assert full.items is not None
    seen = full.model_copy(update={"items": full.items.model_copy(update={"only_seen": True})})
    data = read_sequences(seen, root=tmp_path)
    assert data.catalogue.ids == ["x", "y", "z"]
    assert sequences(data) == {"b": ["x", "y", "x"], "a": ["y", "x", "z"]}


def test_without_a_table_items_are_in_order_of_appearance(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path, items=None, time="time"), root=tmp_path)
    assert data.catalogue.ids == ["x", "y", "z"]
    assert data.catalogue.texts == ["", "", ""]
    assert data.catalogue.attributes.shape == (3, 0)
    assert sequences(data) == {"b": ["y", "x", "x"], "a": ["z", "y", "x"]}


def test_ids_are_text_whatever_type_a_table_gives_them(tmp_path: Path) -> None:
    """Numbers in one file, text in another, and the floats that pandas makes of whole numbers."""
    pl.DataFrame({"u": [7.0, 7.0, 3.0], "i": [10, 9, 10]}).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame({"id": ["9", "10"]}).write_csv(tmp_path / "items.csv")
    values: dict[str, Any] = {
        "name": "typed",
        "interactions": {"files": "log.parquet", "user": "u", "item": "i"},
        "items": {"files": "items.csv", "id": "id"},
    }
    data = read_sequences(SequenceSpec.model_validate(values), root=tmp_path)
    assert sequences(data) == {"7": ["10", "9"], "3": ["10"]}
    pl.DataFrame({"u": [7.5], "i": [10]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"column u holds 7.5, which is no id"):
        read_sequences(SequenceSpec.model_validate(values), root=tmp_path)


def test_codes_with_leading_zeros_stay_apart(tmp_path: Path) -> None:
    data = read_sequences(spec(tmp_path, "user,item\n1,007\n1,7\n", items=None), root=tmp_path)
    assert data.catalogue.ids == ["007", "7"]


def lists_spec(folder: Path, frame: pl.DataFrame, **rules: Any) -> SequenceSpec:
    frame.write_parquet(folder / "lists.parquet")
    values = {
        "name": "lists",
        "sequences": {"files": "lists.parquet", "user": "user_id", "items": "items"} | rules,
    }
    return SequenceSpec.model_validate(values)


def test_ready_lists_keep_their_order_and_their_empty_users(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user_id": [9, 2, 5, 4], "items": [[3, 1], [], None, [1, 1]]},
        schema_overrides={"items": pl.List(pl.Int32)},
    )
    data = read_sequences(lists_spec(tmp_path, frame), root=tmp_path)
    assert sequences(data) == {"9": ["3", "1"], "2": [], "5": [], "4": ["1", "1"]}
    assert data.users == ["9", "2", "5", "4"]
    assert data.catalogue.ids == ["3", "1"]
    cored = read_sequences(lists_spec(tmp_path, frame, min_count=2), root=tmp_path)
    assert sequences(cored) == {"4": ["1", "1"]}


def test_lists_can_be_text_with_spaces(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u", "v"], "items": ["b a  b", " "]})
    data = read_sequences(lists_spec(tmp_path, frame), root=tmp_path)
    assert sequences(data) == {"u": ["b", "a", "b"], "v": []}


def test_a_user_with_two_lists_is_an_error(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u", "v", "u"], "items": [["a"], ["b"], ["c"]]})
    with pytest.raises(ValueError, match="a user must have one row; 1 have several, such as 'u'"):
        read_sequences(lists_spec(tmp_path, frame), root=tmp_path)


def test_a_list_with_a_gap_and_a_column_of_numbers_are_errors(tmp_path: Path) -> None:
    gap = pl.DataFrame({"user_id": ["u"], "items": [["a", None]]})
    with pytest.raises(ValueError, match="column items has no value"):
        read_sequences(lists_spec(tmp_path, gap), root=tmp_path)
    numbers = pl.DataFrame({"user_id": ["u"], "items": [4]})
    with pytest.raises(ValueError, match="column items must hold lists of item ids"):
        read_sequences(lists_spec(tmp_path, numbers), root=tmp_path)


def slow_reference(
    rows: list[tuple[str, str, int]], min_count: int, repeats: str
) -> dict[str, list[str]]:
    events = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: row[2]):  # a stable sort
        if repeats == "keep" or item not in events[user]:
            events[user].append(item)
    while True:
        counts = Counter(item for own in events.values() for item in own)
        left = {
            user: kept
            for user, own in events.items()
            if len(kept := [item for item in own if counts[item] >= min_count]) >= min_count
        }
        if left == events:
            return left
        events = left  # type: ignore[assignment]


@pytest.mark.parametrize("repeats", ["keep", "first"])
@pytest.mark.parametrize("files", [1, 3])
def test_agrees_with_a_slow_reference(tmp_path: Path, repeats: str, files: int) -> None:
    generator = np.random.default_rng(files)
    rows = [
        (f"u{user}", f"i{item}", int(time))
        for user, item, time in zip(
            generator.integers(60, size=600),
            generator.integers(90, size=600),
            generator.integers(40, size=600),
            strict=True,
        )
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    for part in range(files):
        size = 600 // files
        frame.slice(part * size, size).write_ndjson(tmp_path / f"log-{part}.jsonl")
    values = {
        "name": "drawn",
        "interactions": {
            "files": "log-*.jsonl",
            "user": "user",
            "item": "item",
            "time": "time",
            "min_count": 5,
            "repeats": repeats,
        },
    }
    data = read_sequences(SequenceSpec.model_validate(values), root=tmp_path)
    wanted = slow_reference(rows, 5, repeats)
    assert sequences(data) == wanted
    assert 0 < len(wanted) < 60 or repeats == "keep"
    assert set(data.catalogue.ids) == {item for own in wanted.values() for item in own}


def test_the_folder_is_opened_again_with_the_same_content(tmp_path: Path) -> None:
    declaration = tmp_path / "shop.toml"
    declared = spec(tmp_path, time="time")
    declaration.write_text(
        'name = "shop"\n[interactions]\nfiles = "log.csv"\nuser = "user"\nitem = "item"\n'
        'time = "time"\n[items]\nfiles = "items.csv"\nid = "id"\ntitle = "name"\ntext = ["name"]\n'
    )
    assert load_sequence_spec(declaration) == declared
    data = prepare_sequences(declaration, tmp_path / "out")
    assert sequences(data) == sequences(read_sequences(declared, root=tmp_path))
    assert data.data_hash == read_sequences(declared, root=tmp_path).data_hash
    with pytest.raises(FileExistsError, match="not empty"):
        prepare_sequences(declaration, tmp_path / "out")
    assert prepare_sequences(declaration, tmp_path / "out", overwrite=True).users == data.users


def test_wrong_declarations_are_told(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(ValueError, match=r"one of the tables \[interactions\] and \[sequences\]"):
        load_sequence_spec(path)
    path.write_text('name = "x"\n[interactions]\nfiles = "a.csv"\nuser = "u"\nitems = "i"\n')
    with pytest.raises(ValueError, match=r"interactions.item is missing\n.*items; did you mean"):
        load_sequence_spec(path)
    table = '[items]\nfiles = "a.csv"\nid = "i"\ntext = ["t", "t"]\n'
    log = 'name = "x"\n[interactions]\nfiles = "a.csv"\nuser = "u"\nitem = "i"\n'
    path.write_text(log + table)
    with pytest.raises(ValueError, match="text names t more than once"):
        load_sequence_spec(path)
    wrong = spec(tmp_path, time="when")
    with pytest.raises(ValueError, match=r"log.csv has no column when; its columns are user"):
        read_sequences(wrong, root=tmp_path)
