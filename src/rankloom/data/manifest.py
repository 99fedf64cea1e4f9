"""`dataset.json`: what a data set folder holds, and the checks made before anything is read."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rankloom.config import Config, parse_config
from rankloom.data.table_schema import TableSchema
from rankloom.schema import Schema

FORMAT_VERSION = 1
"""Version of the folder layout that this library writes and reads."""
MANIFEST_NAME = "dataset.json"
"""Name of the manifest, written last: a folder without it is no data set."""


class FileInfo(Config):
    """One file of the folder."""

    bytes: int = Field(ge=0)
    """Size in bytes."""
    sha256: str
    """Hash of its bytes, hexadecimal."""


class SplitInfo(Config):
    """One split."""

    rows: int = Field(ge=0)
    """Rows of the split."""
    rows_per_shard: int = Field(gt=0)
    """Rows of every shard but the last."""
    shards: tuple[str, ...]
    """Shard files in row order, relative to the folder."""
    known_labels: tuple[int, ...]
    """Rows with a known label, per task."""
    positive_labels: tuple[int, ...]
    """Rows with a positive label, per task."""

    @property
    def has_missing_labels(self) -> bool:
        """Whether any label of the split is missing."""
        return any(known != self.rows for known in self.known_labels)


class Manifest(Config):
    """Everything about a data set folder."""

    format_version: int = FORMAT_VERSION
    """Version of the folder layout."""
    rankloom_version: str
    """Version of the library that wrote the folder."""
    name: str
    """Name of the data set."""
    declared: TableSchema
    """The declaration that it was prepared from."""
    fitted: Schema
    """What its tensors mean."""
    entity_keys: dict[str, str] = Field(default_factory=dict)
    """Entity -> the categorical field whose ids select the entity's rows."""
    splits: dict[str, SplitInfo]
    """Splits by name."""
    files: dict[str, FileInfo]
    """Every file but the manifest, by its path relative to the folder."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """Plain JSON values for the reader: rows dropped, time taken, and the like."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        shards = {shard for split in self.splits.values() for shard in split.shards}
        outside = sorted(name for name in {*self.files, *shards} if _leaves_folder(name))
        if outside:
            raise ValueError(f"files must lie inside the folder; got {', '.join(outside)}")
        unlisted = sorted(shards - self.files.keys())
        if unlisted:
            raise ValueError(f"shards without an entry in files: {', '.join(unlisted)}")
        return self

    def data_hash(self) -> str:
        """Short hash of the data: schema, splits and content of the files.

        Where the raw files lay, when the folder was made and by which version does not enter it.
        """
        content = {
            "fitted": self.fitted.model_dump(mode="json"),
            "entity_keys": self.entity_keys,
            "splits": {name: split.model_dump(mode="json") for name, split in self.splits.items()},
            "files": {
                name: info.sha256
                for name, info in self.files.items()
                if PurePosixPath(name).suffix != ".toml"
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_info(path: Path) -> FileInfo:
    """Size and hash of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileInfo(bytes=path.stat().st_size, sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `dataset.json` in one step: it is there in full or not at all."""
    target = folder / MANIFEST_NAME
    partial = target.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(manifest.model_dump(mode="json"), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(target)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate `dataset.json`.

    Raises:
        FileNotFoundError: the folder does not exist or holds no manifest.
        ValueError: the manifest is damaged or of another format version.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a dataset folder (or an interrupted prepare): it has no "
            f"{MANIFEST_NAME}; make it with `rankloom prepare`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; prepare the data set again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is damaged: it has no format_version; prepare again")
    if version != FORMAT_VERSION:
        age, advice = (
            ("an older", "prepare the data set again")
            if version < FORMAT_VERSION
            else ("a newer", "update rankloom")
        )
        raise ValueError(
            f"{folder} has {age} dataset format (version {version}; this rankloom reads version "
            f"{FORMAT_VERSION}); {advice}"
        )
    return parse_config(Manifest, values, str(path))


def verify_files(
    folder: Path, files: Mapping[str, FileInfo], verify: Literal["size", "hash"]
) -> None:
    """Compare the folder's files with the manifest.

    Args:
        folder: the data set folder.
        files: what the manifest says of each file.
        verify: `size` compares sizes (no file is read); `hash` reads and hashes every file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has another size or hash, or `verify` is none of the two.
    """
    if verify not in ("size", "hash"):
        raise ValueError(f"verify must be size or hash; got {verify!r}")
    for name, info in files.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"missing file of the dataset: {path}; prepare again")
        size = path.stat().st_size
        if size != info.bytes:
            change = "truncated" if size < info.bytes else "altered"
            raise ValueError(
                f"{path} is {change}: {size} bytes, expected {info.bytes}; prepare again"
            )
        if verify == "hash" and file_info(path).sha256 != info.sha256:
            raise ValueError(f"{path} is altered: its hash is not the recorded one; prepare again")


def _leaves_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name
