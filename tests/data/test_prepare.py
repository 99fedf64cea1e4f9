import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from prepare_examples import write_rich

from rankloom.data import prepare as prepare_module
from rankloom.data import spill, writer
from rankloom.data.encode import Encoder, vocabulary_path
from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.table_schema import (
    Categorical,
    ColumnSplit,
    Entity,
    Feature,
    History,
    LabelSpec,
    Numeric,
    Roles,
    Sequence,
    SequenceGroupSpec,
    TableInput,
    TableSchema,
    Vector,
)

FOLDS = ["train", "train", "train", "train", "valid", "test"]


def declare(features: dict[str, Feature], **more: object) -> TableSchema:
    values: dict[str, object] = {
        "name": "small",
        "input": TableInput(files="log.parquet"),
        "features": features,
        "labels": {"click": LabelSpec()},
        "split": ColumnSplit(column="fold"),
    }
    return TableSchema(**(values | more))


def run(folder: Path, columns: dict[str, object], schema: TableSchema, **more: object) -> Dataset:
    frame = {"click": [0, 1, 0, 1, 0, 1], "fold": FOLDS} | columns
    pl.DataFrame(frame).write_parquet(folder / "log.parquet")
    return prepare(schema, folder / "out", root=folder, **more)


def ids(data: Dataset, split: str = "train", field: int = 0) -> list[int]:
    stored = data.split(split)
    return stored.slice(0, stored.rows).categorical[:, field].tolist()


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_ids_by_hand(tmp_path):
    schema = declare({"item": Categorical()})
    data = run(tmp_path, {"item": ["b", "a", "b", None, "c", "a"]}, schema)
    assert data.schema.tables == {"item": 4}
    assert ids(data) == [2, 3, 2, 0]
    assert ids(data, "valid") == [1]
    assert ids(data, "test") == [3]


@pytest.mark.parametrize(
    ("values", "options", "train", "valid", "rows"),
    [
        (["a", "b", "c", "d", "a", "a"], {"min_count": 2}, [1, 1, 1, 1], [1], 2),
        ([None] * 6, {}, [0] * 4, [0], 2),
        ([None] * 6, {"hash_buckets": 3}, [0] * 4, [0], 5),
        ([7, 7, 8, 9, 9, 7], {"max_values": 1}, [2, 2, 1, 1], [1], 3),
        (
            [1.0, 2.0, 3.0, None, 9.0, 0.0],
            {"transform": "quantile", "bins": 2},
            [2, 3, 3, 0],
            [3],
            4,
        ),
        ([None] * 6, {"transform": "quantile", "bins": 2}, [0] * 4, [0], 3),
        ([100, 3, 100, -4, 100, 3], {"transform": "criteo_ln2"}, [2, 4, 2, 3], [2], 5),
        ([2**53, 2**53 + 1, 2**53, 2**62, 2**53 + 1, 2**62 + 1], {}, [2, 3, 2, 4], [3], 5),
        ([1.5, 2.0, 1.5, None, 2.0, 9.9], {}, [2, 3, 2, 0], [3], 4),
    ],
)
def test_categorical_columns_fit_reload_and_encode(tmp_path, values, options, train, valid, rows):
    column = pl.Series("x", values, dtype=pl.String if values == [None] * 6 else None)
    if values == [None] * 6 and "transform" in options:
        column = column.cast(pl.Float64)
    data = run(tmp_path, {"x": column}, declare({"x": Categorical(**options)}))
    assert data.schema.tables == {"x": rows}
    assert ids(data) == train
    assert ids(data, "valid") == valid
    again = Encoder.load(data.folder).encode(pl.DataFrame({"x": column[:5]}))
    assert again.categorical[:, 0].tolist() == [*train, *valid]


def test_hash_buckets_are_stable_and_shared_by_text_and_numbers(tmp_path):
    schema = declare(
        {"x": Categorical(hash_buckets=50), "y": Categorical(column="t", hash_buckets=50)}
    )
    numbers = [5, 6, 7, 8, 9, 10]
    data = run(tmp_path, {"x": numbers, "t": [str(v) for v in numbers]}, schema)
    assert ids(data, field=0) == ids(data, field=1)
    assert min(ids(data)) >= 2


@pytest.mark.parametrize(("null_values", "expected"), [((), [2, 3, 2, 3]), (("",), [0, 2, 0, 2])])
def test_null_values_decide_what_an_empty_text_is(tmp_path, null_values, expected):
    lines = zip(["", "a", "", "a", "b", ""], [0, 1, 0, 1, 0, 1], FOLDS, strict=True)
    text = "".join(f"{item},{click},{fold}\n" for item, click, fold in lines)
    (tmp_path / "log.csv").write_text("item,click,fold\n" + text)
    spec = TableInput(files="log.csv", null_values=null_values)
    data = prepare(declare({"item": Categorical()}, input=spec), tmp_path / "out", root=tmp_path)
    assert ids(data) == expected


def test_numbers_by_hand(tmp_path):
    schema = declare({"x": Numeric(transform="standardise", fill="mean"), "y": Numeric()})
    columns = {"x": [1.0, 3.0, None, 5.0, 3.0, 99.0], "y": [1, 2, 3, None, 5, 6]}
    data = run(tmp_path, columns, schema)
    found = data.split("train").slice(0, 4).numeric.numpy()
    deviation = np.sqrt(8 / 3)
    np.testing.assert_allclose(found[:, 0], [-2 / deviation, 0, 0, 2 / deviation], rtol=1e-6)
    assert found[:, 1].tolist() == [1, 2, 3, 0]


def test_a_number_without_training_values_is_an_error_and_leaves_nothing(tmp_path):
    schema = declare({"x": Numeric()})
    columns = {"x": [None, None, None, None, 1.0, 2.0]}
    with pytest.raises(ValueError, match="numeric feature x has no value in the training split"):
        run(tmp_path, columns, schema)
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_sequences_are_cut_and_share_the_items_vocabulary(tmp_path):
    schema = declare(
        {
            "item": Categorical(),
            "seen": Sequence(vocabulary="item", max_length=2, ordered=True),
            "first": Sequence(column="seen", vocabulary="item", max_length=2, keep="first"),
            "tags": Sequence(separator=";"),
        }
    )
    columns = {
        "item": [10, 11, 10, 12, 13, 10],
        "seen": [[10, 11, 99], [], None, [12], [13, None, 10], [11]],
        "tags": ["a;b", "", None, "b;;b", "c", "a"],
    }
    data = run(tmp_path, columns, schema)
    assert data.schema.tables == {"item": 5, "tags": 4}  # 13, 99 are no item of training rows
    batch = data.split("train").slice(0, 4)
    seen, first, tags = (batch.sequences[name] for name in ("seen", "first", "tags"))
    assert seen.offsets.tolist() == [0, 2, 2, 2, 3]
    assert seen.ids[:, 0].tolist() == [3, 1, 4]
    assert first.ids[:, 0].tolist() == [2, 3, 4]
    assert tags.offsets.tolist() == [0, 2, 2, 2, 4]
    assert tags.ids[:, 0].tolist() == [3, 2, 2, 2]
    assert data.split("valid").slice(0, 1).sequences["seen"].ids[:, 0].tolist() == [1, 2]


def test_features_that_share_a_vocabulary_are_counted_together(tmp_path):
    schema = declare(
        {"a": Categorical(vocabulary="city", min_count=2), "b": Categorical(vocabulary="city")}
    )
    columns = {"a": ["x", "y", "y", "z", "x", "x"], "b": ["x", "z", "w", "v", "x", "x"]}
    data = run(tmp_path, columns, schema)
    assert pl.read_parquet(vocabulary_path(data.folder, "city"))["value"].to_list() == [
        "x",
        "y",
        "z",
    ]
    other = schema.model_copy(
        update={"features": schema.features | {"b": Categorical(vocabulary="city", min_count=3)}}
    )
    with pytest.raises(
        ValueError, match="share the vocabulary city disagree on min_count: 2 and 3"
    ):
        run(tmp_path, columns, other, overwrite=True)


def test_groups_that_are_not_in_step_name_their_row(tmp_path):
    members = {"item": {"column": "a"}, "price": {"column": "b", "kind": "numeric"}}
    spec = SequenceGroupSpec.model_validate({"members": members})
    schema = declare({"item": Categorical()}, sequence_groups={"events": spec})
    columns = {
        "item": list("abcdef"),
        "a": [["x"]] * 6,
        "b": [[1.0], [2.0], [1.0, 2.0], [1.0], [1.0], [1.0]],
    }
    with pytest.raises(ValueError, match="sequence events, row 3: .* a has 1, b 2"):
        run(tmp_path, columns, schema)


@pytest.mark.parametrize(
    ("columns", "more", "message"),
    [
        ({"click": [0, 1, 2, 1, 0, 1]}, {}, "label click, column click, row 3: must be 0 or 1"),
        ({"click": [0, None, 1, 1, 0, 1]}, {}, "label click, .* row 2: is missing; set allow"),
        ({"w": [1, 1, 1, -1, 1, 1]}, {"roles": Roles(weight="w")}, "weight, .* row 4: must be a"),
        (
            {"w": [1.0, float("inf")] * 3},
            {"roles": Roles(weight="w")},
            "weight, column w, row 2: must be a finite",
        ),
        (
            {"w": [1, 1, None, 1, 1, 1]},
            {"roles": Roles(group="w")},
            "group, column w, row 3: is missing",
        ),
        (
            {"w": [1, 1, None, 1, 1, 1]},
            {"roles": Roles(time="w")},
            "time, column w, row 3: must be an integer",
        ),
    ],
)
def test_bad_roles_name_their_row_and_leave_nothing(tmp_path, columns, more, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, {"x": list("abcdef")} | columns, declare({"x": Categorical()}, **more))
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_roles_and_labels_by_hand(tmp_path):
    schema = declare(
        {"x": Categorical()},
        labels={
            "good": LabelSpec(column="stars", threshold=4),
            "buy": LabelSpec(allow_missing=True),
        },
        roles=Roles(scenario="s", group="g", time="t", weight="w"),
    )
    columns = {
        "x": list("abcdef"),
        "stars": [3.5, 4.0, 5.0, 1.0, 4.0, 2.0],
        "buy": [1, None, 0, 1, 0, None],
        "s": [10, 9, None, 10, 11, 9],
        "g": ["u", "v", "u", "w", "u", "v"],
        "t": [1, 2, 3, 4, 5, 2**40],
        "w": [0.5, 0, 1, 2, 3, 4],
    }
    data = run(tmp_path, columns, schema)
    assert data.schema.scenarios == ("<unknown>", "9", "10")
    batch = data.split("train").slice(0, 4)
    assert batch.labels.tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    assert batch.label_mask.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert batch.scenario.tolist() == [2, 1, 0, 2]
    assert batch.group[0] == batch.group[2] != batch.group[1]
    assert batch.weight.tolist() == [0.5, 0, 1, 2]
    assert data.split("valid").slice(0, 1).scenario.tolist() == [0]
    assert data.split("test").slice(0, 1).time.tolist() == [2**40]
    assert data.split("test").slice(0, 1).group[0] == batch.group[1]
    assert data.manifest.splits["train"].positive_labels == (2, 2)


def entity_schema(**features: Feature) -> TableSchema:
    entity = Entity(
        input=TableInput(files="items.csv"), key="id", feature="item", features=features
    )
    return declare(
        {"item": Categorical()},
        entities={"info": entity},
        history=(History(name="past", user="user", time="t", members=("item",)),),
    )


def test_entity_tables_by_hand(tmp_path):
    (tmp_path / "items.csv").write_text("id,brand,price\n1,nike,5\n2,puma,7\n3,nike,9\n4,asics,1\n")
    schema = entity_schema(brand=Categorical(), price=Numeric())
    columns = {"item": [1, 3, 1, 9, 4, 2], "user": [1] * 6, "t": [1, 2, 3, 4, 5, 6]}
    data = run(tmp_path, columns, schema)
    # nike is on two entities of the training rows; puma and asics are on none.
    vocabulary = pl.read_parquet(vocabulary_path(data.folder, "info.brand"))
    assert vocabulary["value"].to_list() == ["nike"]
    assert vocabulary["count"].to_list() == [2]
    assert data.schema.tables == {"info.brand": 3, "item": 5}
    batch = data.split("train").slice(0, 4)
    assert batch.categorical.tolist() == [[2, 2], [3, 2], [2, 2], [4, 0]]
    assert batch.numeric.tolist() == [[5], [9], [5], [0]]
    assert batch.sequences["past"].ids.tolist() == [[2, 2], [2, 2], [3, 2], [2, 2], [3, 2], [2, 2]]
    assert data.split("valid").slice(0, 1).categorical.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,brand\n1,a\n2,b\n1,c\n", "entity info, row 3: the key 1 occurs twice"),
        ("id,brand\n1,a\n,b\n", "entity info, row 2: the key id is missing"),
    ],
)
def test_bad_entity_keys_name_their_row(tmp_path, text, message):
    (tmp_path / "items.csv").write_text(text)
    columns = {"item": [1, 3, 1, 9, 4, 2], "user": [1] * 6, "t": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(ValueError, match=message):
        run(tmp_path, columns, entity_schema(brand=Categorical()))


def test_a_hashed_entity_key_is_refused(tmp_path):
    (tmp_path / "items.csv").write_text("id,brand\n1,a\n")
    schema = entity_schema(brand=Categorical())
    schema = schema.model_copy(update={"features": {"item": Categorical(hash_buckets=9)}})
    columns = {"item": [1, 3, 1, 9, 4, 2], "user": [1] * 6, "t": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(ValueError, match="key feature item must keep a vocabulary"):
        run(tmp_path, columns, schema)


def test_vectors_by_hand(tmp_path):
    schema = declare({"v": Vector(width=2)})
    rows = [[1.0, 2.0], None, [3.0, 4.0], [], [5.0, 6.0], [7.0, 8.0]]
    data = run(tmp_path, {"v": rows}, schema)
    found = data.split("train").slice(0, 4).vectors["v"].tolist()
    assert found == [[1, 2], [0, 0], [3, 4], [0, 0]]
    with pytest.raises(ValueError, match=r"column v, row 2: a vector must have 2 numbers; got 3"):
        run(tmp_path, {"v": [[1.0, 2.0], [1.0, 2.0, 3.0], *rows[2:]]}, schema, overwrite=True)


def test_bytes_do_not_depend_on_chunks_or_threads(tmp_path, monkeypatch):
    schema = write_rich(tmp_path)
    first = digest(prepare(schema, tmp_path / "a", root=tmp_path).folder)
    original = prepare_module.open_rows

    class Cut:
        def __init__(self, stream):
            self.stream, self.notes = stream, stream.notes

        def chunks(self, rows):
            return self.stream.chunks(37)

    monkeypatch.setattr(prepare_module, "open_rows", lambda *given: Cut(original(*given)))
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert digest(prepare(schema, tmp_path / "b", root=tmp_path).folder) == first
    assert {"train/00000.arrow", "entities/item_info.arrow", "dataset.json"} <= first.keys()
    assert Dataset.open(tmp_path / "b", verify="hash").splits == ("train", "valid", "test")


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    schema = declare({"item": Categorical()})
    run(tmp_path, {"item": list("abcdef")}, schema)
    with pytest.raises(FileExistsError, match="out exists and is not empty"):
        run(tmp_path, {"item": list("xyzxyz")}, schema)
    data = run(tmp_path, {"item": list("xyzxyz")}, schema, overwrite=True)
    assert pl.read_parquet(vocabulary_path(data.folder, "item"))["value"].to_list() == list("xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "out"]


def test_what_is_no_data_set_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a data set"):
        run(tmp_path, {"item": list("abcdef")}, declare({"item": Categorical()}), overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("module", [spill.Spill, writer.SplitWriter])
def test_an_interrupt_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch, module):
    schema = declare({"item": Categorical()})
    before = digest(run(tmp_path, {"item": list("abcdef")}, schema).folder)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {"item": list("xyzxyz")}, schema, overwrite=True)
    assert digest(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "out"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill.Spill, "append", full)
    with pytest.raises(OSError, match="the disk is full: data set out was not written"):
        run(tmp_path, {"item": list("abcdef")}, declare({"item": Categorical()}))
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_schema_file_is_the_root_and_progress_is_told(tmp_path):
    (tmp_path / "log.csv").write_text("x,click\n" + "a,1\nb,0\n" * 20)
    (tmp_path / "s.toml").write_text(
        'name = "s"\n[input]\nfiles = "log.csv"\n[features.x]\nkind = "categorical"\n'
        "[labels.click]\n"
    )
    told: list[tuple[str, int]] = []
    data = prepare(
        tmp_path / "s.toml", tmp_path / "new" / "out", progress=lambda *given: told.append(given)
    )
    assert data.folder == tmp_path / "new" / "out"
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["read", "fit", "write"]
    assert told[-1] == ("write", 40)
    assert data.manifest.notes["out_of_vocabulary_share"]["train"] == {}


def test_table_names_stay_inside_the_folder(tmp_path):
    data = run(tmp_path, {"../x/y": list("abcdef")}, declare({"../x/y": Categorical()}))
    assert vocabulary_path(data.folder, "../x/y").parent == data.folder / "vocabulary"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "out"]
