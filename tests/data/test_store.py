import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom.batch import Batch
from rankloom.data.columns import Columns
from rankloom.data.examples import (
    example_dataset,
    example_schema,
    random_columns,
    random_entity,
)
from rankloom.data.store import Dataset, SplitWriter, StoredSplit
from rankloom.data.writer import _slice as rows_between
from rankloom.schema import CategoricalField, Label, Schema

ROWS = 53
SCHEMA = example_schema(
    num_tasks=2, num_scenarios=3, entity=True, rows_per_table=12, max_length=4
).model_copy(update={"texts": ("title",)})


def columns_of(rows: int, seed: int = 0, missing: float = 0.3) -> Columns:
    return random_columns(SCHEMA, rows, np.random.default_rng(seed), missing_labels=missing)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    splits = {"train": columns_of(ROWS), "valid": columns_of(7, 1, 0.0), "test": columns_of(0, 2)}
    return example_dataset(tmp_path_factory.mktemp("data"), SCHEMA, splits, rows_per_shard=10)


def reference_row(columns: Columns, entity: Columns, row: int) -> dict[str, object]:
    """One row as plain Python values, by the words of the contract: slow and obvious."""
    item = int(columns.categorical[row, 0])

    def tags(key: int) -> list[int]:
        group = entity.sequences["item.tags"]
        return group.ids[group.offsets[key] : group.offsets[key + 1], 0].tolist()

    genres = columns.sequences["genres"]
    history = columns.sequences["history"]
    start, stop = history.offsets[row], history.offsets[row + 1]
    assert history.numeric is not None
    assert history.time is not None
    events = []
    for position in range(start, stop):
        own = int(history.ids[position, 0])
        padded = [*tags(own), 0, 0, 0][:3]
        ids = [own, int(entity.categorical[own, 0]), int(history.ids[position, 1]), *padded]
        numeric = [float(history.numeric[position, 0]), float(entity.numeric[own, 0])]
        vector = entity.vectors["item.text"][own].tolist()
        events.append((ids, numeric, int(history.time[position]), vector))
    assert columns.labels is not None
    labels = columns.labels[row].tolist()
    return {
        "categorical": [
            item,
            int(entity.categorical[item, 0]),
            *columns.categorical[row, 1:].tolist(),
        ],
        "numeric": [float(entity.numeric[item, 0]), *columns.numeric[row].tolist()],
        "embedding": columns.vectors["embedding"][row].tolist(),
        "item.text": entity.vectors["item.text"][item].tolist(),
        "genres": genres.ids[genres.offsets[row] : genres.offsets[row + 1], 0].tolist(),
        "tags": tags(item),
        "history": events,
        "labels": [0.0 if np.isnan(label) else label for label in labels],
        "known": [not np.isnan(label) for label in labels],
        "roles": [
            float(columns.weight[row]),  # type: ignore[index]
            int(columns.scenario[row]),  # type: ignore[index]
            int(columns.group[row]),  # type: ignore[index]
            int(columns.time[row]),  # type: ignore[index]
        ],
    }


def batch_row(batch: Batch, row: int) -> dict[str, object]:
    genres, tags = batch.sequences["genres"], batch.sequences["item.tags"]
    history = batch.sequences["history"]
    events = []
    for position in range(int(history.offsets[row]), int(history.offsets[row + 1])):
        assert history.numeric is not None
        assert history.time is not None
        events.append(
            (
                history.ids[position].tolist(),
                history.numeric[position].tolist(),
                int(history.time[position]),
                history.vectors["item.text"][position].tolist(),
            )
        )
    assert batch.labels is not None
    known = batch.label_mask[row].tolist() if batch.label_mask is not None else [True, True]
    return {
        "categorical": batch.categorical[row].tolist(),
        "numeric": batch.numeric[row].tolist(),
        "embedding": batch.vectors["embedding"][row].tolist(),
        "item.text": batch.vectors["item.text"][row].tolist(),
        "genres": genres.ids[genres.offsets[row] : genres.offsets[row + 1], 0].tolist(),
        "tags": tags.ids[tags.offsets[row] : tags.offsets[row + 1], 0].tolist(),
        "history": events,
        "labels": batch.labels[row].tolist(),
        "known": known,
        "roles": [
            float(batch.weight[row]),  # type: ignore[index]
            int(batch.scenario[row]),  # type: ignore[index]
            int(batch.group[row]),  # type: ignore[index]
            int(batch.time[row]),  # type: ignore[index]
        ],
    }


def tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def assert_same(left: Batch, right: Batch) -> None:
    ours, theirs = tensors_of(left), tensors_of(right)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_gather_equals_a_loop_over_rows(dataset: Dataset, rows: list[int]) -> None:
    split = dataset.split("train")
    assert split.num_shards == 6
    batch = split.gather(torch.tensor(rows, dtype=torch.int64))
    columns, entity = columns_of(ROWS), random_entity(SCHEMA, "item", "item")
    assert batch.size == len(rows)
    for place, row in enumerate(rows):
        assert batch_row(batch, place) == reference_row(columns, entity, row)


def test_types_of_the_batch(dataset: Dataset) -> None:
    batch = dataset.split("train").gather(torch.tensor([52, 3]))
    assert batch.categorical.dtype == torch.int32
    assert batch.numeric.dtype == torch.float32
    history = batch.sequences["history"]
    assert (history.offsets.dtype, history.ids.dtype) == (torch.int64, torch.int32)
    assert batch.label_mask is not None
    assert batch.label_mask.dtype == torch.bool
    assert batch.scenario is not None
    assert batch.scenario.dtype == torch.int32
    assert batch.group is not None
    assert batch.group.dtype == torch.int64


def test_slice_equals_gather(dataset: Dataset) -> None:
    split = dataset.split("train")
    for start, stop in [(0, 53), (8, 31), (10, 20), (52, 53), (20, 20), (53, 53)]:
        assert_same(split.slice(start, stop), split.gather(torch.arange(start, stop)))


def test_rows_outside_the_split_are_refused(dataset: Dataset) -> None:
    split = dataset.split("train")
    with pytest.raises(IndexError, match="row 53 of a split of 53 rows"):
        split.gather(torch.tensor([1, 53]))
    with pytest.raises(IndexError, match="row -1 of a split of 53 rows"):
        split.gather(torch.tensor([-1, 2]))
    with pytest.raises(IndexError, match="rows 5 to 54 of a split of 53 rows"):
        split.slice(5, 54)


def test_label_mask_only_where_labels_are_missing(dataset: Dataset) -> None:
    assert dataset.split("valid").slice(0, 7).label_mask is None
    info = dataset.manifest.splits["train"]
    labels = columns_of(ROWS).labels
    assert labels is not None
    assert info.known_labels == tuple((~np.isnan(labels)).sum(0))
    assert info.positive_labels == tuple((labels == 1).sum(0))


def test_empty_split_gives_an_empty_batch(dataset: Dataset) -> None:
    split = dataset.split("test")
    assert split.rows == 0
    batch = split.slice(0, 0)
    assert batch.categorical.shape == (0, 6)
    assert batch.sequences["history"].offsets.tolist() == [0]
    assert batch.sequences["history"].ids.shape == (0, 6)


def test_one_memory_copy_gives_the_same_batches(dataset: Dataset) -> None:
    split = dataset.split("train")
    whole = split.to("cpu")
    rows = torch.tensor([50, 0, 9, 10, 10, 33])
    assert whole.num_shards == 1
    assert_same(whole.gather(rows), split.gather(rows))


def test_batches_do_not_alias_the_store(dataset: Dataset) -> None:
    split = dataset.split("valid")
    before = split.slice(0, 7)
    split.slice(0, 7).numeric.zero_()
    assert_same(split.slice(0, 7), before)


def test_texts_stay_in_the_store(dataset: Dataset) -> None:
    texts = dataset.split("train").texts("title").to_pylist()
    assert texts == [f"title {row}" for row in range(ROWS)]
    with pytest.raises(KeyError, match="no text column body; known: title"):
        dataset.split("train").texts("body")


def test_serving_batch_equals_the_stored_one(dataset: Dataset) -> None:
    columns = columns_of(ROWS)
    assert_same(dataset.batch(columns), dataset.split("train").slice(0, ROWS))
    bare = dataclasses.replace(columns, labels=None, weight=None, group=None, texts={})
    assert_same(dataset.batch(bare), dataset.split("train").slice(0, ROWS).without_labels())


def test_serving_columns_are_checked(dataset: Dataset) -> None:
    columns = columns_of(3)
    wrong = dataclasses.replace(columns, categorical=columns.categorical[:, 1:])
    with pytest.raises(
        ValueError, match=r"categorical: got int32 \(3, 4\), expected int32 \(3, 5\)"
    ):
        dataset.batch(wrong)
    wide = dataclasses.replace(columns, numeric=columns.numeric.astype(np.float64))
    with pytest.raises(ValueError, match=r"numeric: got float64 \(3, 2\), expected float32"):
        dataset.batch(wide)
    with pytest.raises(ValueError, match="sequences: got none, expected genres, history"):
        dataset.batch(dataclasses.replace(columns, sequences={}))


def test_large_ids_and_groups_are_exact(tmp_path: Path) -> None:
    schema = Schema(
        tables={"a": 2**31 - 1},
        categorical=(CategoricalField(name="a", table="a"),),
        labels=(Label(name="y"),),
        has_group=True,
        has_time=True,
    )
    ids = np.array([[2**24 + 1], [2**31 - 2], [2**24 - 1]], np.int32)
    groups = np.array([2**53 + 1, -(2**63), 2**63 - 1], np.int64)
    columns = Columns(
        categorical=ids,
        numeric=np.zeros((3, 0), np.float32),
        labels=np.ones((3, 1), np.float32),
        group=groups,
        time=groups[::-1].copy(),
    )
    split = example_dataset(tmp_path, schema, {"train": columns}, rows_per_shard=2).split("train")
    batch = split.gather(torch.tensor([2, 0, 1]))
    assert batch.categorical[:, 0].tolist() == [2**24 - 1, 2**24 + 1, 2**31 - 2]
    assert batch.group is not None
    assert batch.group.tolist() == [2**63 - 1, 2**53 + 1, -(2**63)]
    assert batch.time is not None
    assert batch.time.tolist() == [2**53 + 1, 2**63 - 1, -(2**63)]
    assert batch.numeric.shape == (3, 0)


def test_shards_are_as_long_as_asked_and_do_not_depend_on_chunks(tmp_path: Path) -> None:
    titles = pa.array([None if row % 7 == 2 else "x" * row for row in range(ROWS)])
    whole = dataclasses.replace(columns_of(ROWS), texts={"title": titles})
    written = {}
    for name, bounds in {"one": [0, 53], "many": [0, 1, 9, 10, 34, 34, 53]}.items():
        writer = SplitWriter(tmp_path / name, "train", SCHEMA, rows_per_shard=10)
        for start, stop in pairwise(bounds):
            writer.append(rows_between(whole, start, stop))
        info = writer.close()
        assert info.rows == 53
        assert info.shards == tuple(f"train/{number:05d}.arrow" for number in range(6))
        written[name] = writer.files
        lengths = [
            pa.ipc.open_file(pa.memory_map(str(tmp_path / name / shard))).get_batch(0).num_rows
            for shard in info.shards
        ]
        assert lengths == [10] * 5 + [3]
    assert written["one"] == written["many"]


def test_recorded_hash_is_that_of_the_file(dataset: Dataset) -> None:
    Dataset.open(dataset.folder, verify="hash")
    shard = dataset.folder / "train/00000.arrow"
    assert dataset.manifest.files["train/00000.arrow"].bytes == shard.stat().st_size


def test_any_arrow_reader_opens_a_shard(dataset: Dataset) -> None:
    with pa.OSFile(str(dataset.folder / "train/00001.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    columns = columns_of(ROWS)
    assert table["categorical"].to_pylist() == columns.categorical[10:20].tolist()
    assert table["time"].to_pylist() == columns.time[10:20].tolist()  # type: ignore[index]
    assert table["sequence.history"].type.value_type.num_fields == 3


def test_pages_are_not_copied(dataset: Dataset) -> None:
    # The mapping is private: a write through a tensor must not reach the file.
    split = dataset.split("valid")
    before = (dataset.folder / "valid/00000.arrow").read_bytes()
    split._shards[0].categorical.fill_(7)
    assert (dataset.folder / "valid/00000.arrow").read_bytes() == before
    assert int(split.slice(0, 1).categorical[0, 0]) == 7  # and no copy lies in between


def test_writer_refuses_wrong_columns(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, "train", SCHEMA)
    columns = columns_of(4)
    with pytest.raises(ValueError, match="labels: got none, expected float32"):
        writer.append(dataclasses.replace(columns, labels=None))
    with pytest.raises(ValueError, match="vectors: got none, expected embedding"):
        writer.append(dataclasses.replace(columns, vectors={}))
    history = columns.sequences["history"]
    falling = dataclasses.replace(history, offsets=history.offsets[::-1].copy())
    with pytest.raises(ValueError, match="sequence history"):
        writer.append(
            dataclasses.replace(columns, sequences={**columns.sequences, "history": falling})
        )


def test_full_disk_propagates_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.data import shards

    def full(self: object, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards._HashingStream, "write", full)
    writer = SplitWriter(tmp_path, "train", SCHEMA)
    writer.append(columns_of(4))
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()
    assert list((tmp_path / "train").iterdir()) == []


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.folder, tmp_path / "copy"))


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_open_names_the_fault(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="interrupted prepare"):
        Dataset.open(copy / "train")
    with pytest.raises(ValueError, match="verify must be size or hash; got 'none'"):
        Dataset.open(copy, verify="none")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no split dev; known: train, valid, test"):
        Dataset.open(copy).split("dev")


def test_other_format_versions_are_refused(copy: Path) -> None:
    edit_manifest(copy, format_version=999)
    with pytest.raises(ValueError, match=r"a newer dataset format \(version 999.*update rankloom"):
        Dataset.open(copy)
    edit_manifest(copy, format_version=0)
    with pytest.raises(ValueError, match=r"an older dataset format \(version 0.*prepare the data"):
        Dataset.open(copy)


def test_damaged_manifest_is_refused(copy: Path) -> None:
    path = copy / "dataset.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        Dataset.open(copy)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no format_version"):
        Dataset.open(copy)


def test_missing_truncated_and_altered_files_are_named(copy: Path) -> None:
    shard = copy / "train/00003.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"train/00003.arrow is truncated: \d+ bytes, expected"):
        Dataset.open(copy)
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    shard.write_bytes(changed)
    Dataset.open(copy)  # the size is right: only the hash sees it
    with pytest.raises(ValueError, match=r"00003\.arrow is altered: its hash"):
        Dataset.open(copy, verify="hash")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing file of the dataset.*00003\.arrow"):
        Dataset.open(copy)


def test_altered_file_of_the_right_size_is_one_sentence(copy: Path) -> None:
    shard = copy / "train/00003.arrow"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(ValueError, match=r"00003\.arrow is damaged"):
        Dataset.open(copy).split("train")


def test_shards_of_another_schema_are_refused(copy: Path) -> None:
    fitted = json.loads((copy / "dataset.json").read_text())["fitted"]
    fitted["categorical"] = [f for f in fitted["categorical"] if f["name"] != "c3"]
    edit_manifest(copy, fitted=fitted)
    with pytest.raises(ValueError, match="unexpected column categorical"):
        Dataset.open(copy).split("train")


def test_files_outside_the_folder_are_refused(copy: Path) -> None:
    files = json.loads((copy / "dataset.json").read_text())["files"]
    for name in ("../secret", "/etc/passwd"):
        edit_manifest(copy, files=files | {name: {"bytes": 1, "sha256": "0"}})
        with pytest.raises(ValueError, match="files must lie inside the folder"):
            Dataset.open(copy)


def test_data_hash_follows_the_data_alone(copy: Path, dataset: Dataset, tmp_path: Path) -> None:
    edit_manifest(copy, rankloom_version="9.9", notes={"seconds": 3})
    assert Dataset.open(copy).data_hash == dataset.data_hash
    splits = {"train": columns_of(ROWS, seed=5)}
    other = example_dataset(tmp_path / "other", SCHEMA, splits)
    assert other.data_hash != dataset.data_hash


def test_entity_that_does_not_fit_is_refused(copy: Path) -> None:
    fitted = json.loads((copy / "dataset.json").read_text())["fitted"]
    fitted["tables"]["item"] = 13
    edit_manifest(copy, fitted=fitted)
    with pytest.raises(ValueError, match="entity item has 12 rows; its key has 13 ids"):
        Dataset.open(copy)
    edit_manifest(copy, entity_keys={"item": "history"})
    with pytest.raises(ValueError, match="its key must be a categorical field of the row"):
        Dataset.open(copy)


def test_stored_split_reports_its_size(dataset: Dataset) -> None:
    split: StoredSplit = dataset.split("valid")
    assert split.schema == SCHEMA
    events = dataset.batch(columns_of(7, 1, 0.0)).sequences
    history, genres = (int(events[name].offsets[-1]) for name in ("history", "genres"))
    row = 5 * 4 + 2 * 4 + 8 * 4 + 2 * 4 + 4 + 4 + 8 + 8
    expected = 7 * row + 2 * 8 * 8 + history * (2 * 4 + 4 + 8) + genres * 4
    assert split.memory_bytes() == expected
