from pathlib import Path

import pytest

from rankloom.data.examples import example_schema
from rankloom.data.manifest import (
    FileInfo,
    Manifest,
    SplitInfo,
    file_info,
    read_manifest,
    write_manifest,
)
from rankloom.data.table_schema import TableSchema

DECLARED = TableSchema.model_validate(
    {
        "name": "log",
        "input": {"files": "log.csv"},
        "features": {"item": {"kind": "categorical"}},
        "labels": {"click": {}},
        "split": {"kind": "column", "column": "part", "train": [1, "a"]},
    }
)
SPLIT = SplitInfo(
    rows=10,
    rows_per_shard=10,
    shards=("train/00000.arrow",),
    known_labels=(10,),
    positive_labels=(3,),
)
SHARD = FileInfo(bytes=5, sha256="ab")


def manifest(**changes: object) -> Manifest:
    values = {
        "rankloom_version": "1",
        "name": "log",
        "declared": DECLARED,
        "fitted": example_schema(),
        "splits": {"train": SPLIT},
        "files": {"train/00000.arrow": SHARD, "schema.toml": SHARD},
        "notes": {"dropped": 3},
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


def test_written_manifest_is_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_unknown_keys_are_told(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"notes"', '"note"'))
    with pytest.raises(ValueError, match=r"dataset\.json: unknown key note; did you mean notes"):
        read_manifest(tmp_path)


def test_size_and_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_info(tmp_path / "abc") == FileInfo(
        bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_missing_labels_follow_from_the_counts() -> None:
    assert not SPLIT.has_missing_labels
    assert SPLIT.model_copy(update={"known_labels": (9,)}).has_missing_labels


def test_shards_must_be_listed() -> None:
    with pytest.raises(ValueError, match=r"shards without an entry in files: train/00000\.arrow"):
        manifest(files={})


def test_data_hash_follows_content_not_the_declaration() -> None:
    first = manifest().data_hash()
    declared = DECLARED.model_copy(update={"name": "other"})
    toml = FileInfo(bytes=6, sha256="cd")
    files = {"train/00000.arrow": SHARD, "schema.toml": toml}
    assert manifest(declared=declared, files=files, notes={}).data_hash() == first
    other = FileInfo(bytes=5, sha256="ac")
    assert manifest(files={"train/00000.arrow": other}).data_hash() != first
    assert manifest(entity_keys={"item": "item"}).data_hash() != first
    assert manifest(fitted=example_schema(num_tasks=2)).data_hash() != first
