"""A sequence data set on disk: the catalogue of items and the users' sequences.

The folder holds `items.parquet`, `sequences.parquet`, `vectors.safetensors` where items came with
vectors, and `sequences.json`, which is written last: a folder without it is no data set.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

import rankloom
from rankloom.config import Config, parse_config, read_json_values
from rankloom.data.manifest import FileInfo, file_info, verify_files
from rankloom.data.new_folder import check_target, new_folder, sync_folder
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

IntArray = npt.NDArray[np.int64]

SEQUENCE_FORMAT = 1
"""Version of the folder layout that this library writes and reads."""
SEQUENCE_MANIFEST = "sequences.json"
"""Name of the manifest."""
ITEMS_FILE, SEQUENCES_FILE, VECTORS_FILE = (
    "items.parquet",
    "sequences.parquet",
    "vectors.safetensors",
)
_ATTRIBUTE = "attribute:"
"""What stands before an attribute's name in `items.parquet`."""


class SequenceManifest(Config):
    """What a folder of sequences holds."""

    format_version: int
    """Version of the folder layout."""
    rankloom_version: str
    """Version of the library that wrote the folder."""
    name: str
    """Name of the data set."""
    data_hash: str
    """Short hash of the content."""
    users: int = Field(ge=0)
    """Users."""
    items: int = Field(ge=0)
    """Items of the catalogue."""
    interactions: int = Field(ge=0)
    """Events of all sequences."""
    title_column: str | None
    """Column that the titles came from."""
    text_columns: tuple[str, ...]
    """Columns that the texts were joined from, in order."""
    attribute_names: tuple[str, ...]
    """Side fields of the items."""
    files: dict[str, FileInfo]
    """Every file but the manifest."""


@dataclass(frozen=True, eq=False)
class SequenceData:
    """A catalogue, and sequences of its items."""

    name: str
    """Name of the data set."""
    catalogue: Catalogue
    """The items."""
    histories: Histories
    """Each user's items, oldest first."""
    users: list[str]
    """[users] ids, in the order of the histories; number `u + 1` is the user at place u."""
    title_column: str | None = None
    """Column that the titles came from."""
    text_columns: tuple[str, ...] = ()
    """Columns that the texts were joined from, in order."""
    recorded_hash: str | None = None
    """`data_hash` as the manifest has it; None: computed from the content."""

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            ValueError: another number of users or items, or a user id that is there twice.
        """
        if len(self.users) != self.histories.num_users:
            raise ValueError(
                f"{len(self.users):,} user ids for {self.histories.num_users:,} sequences"
            )
        if self.catalogue.num_items != self.histories.num_items:
            raise ValueError(
                f"the sequences are of {self.histories.num_items:,} items, the catalogue has "
                f"{self.catalogue.num_items:,}"
            )
        if len(self._user_number) != len(self.users):
            raise ValueError("user ids must differ")

    @cached_property
    def data_hash(self) -> str:
        """Short hash of everything in the data set but its name."""
        if self.recorded_hash is not None:
            return self.recorded_hash
        catalogue = self.catalogue
        labels = [catalogue.attribute_names, catalogue.attribute_labels]
        digest = hashlib.sha256(
            json.dumps([catalogue.content_hash, catalogue.titles, labels, self.users]).encode()
        )
        digest.update(np.ascontiguousarray(self.histories.offsets, np.int64).tobytes())
        digest.update(np.ascontiguousarray(self.histories.items, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def user_numbers(self, ids: Iterable[str]) -> IntArray:
        """[ids] the number of each user, from 1; 0 for a user whom the data set does not know."""
        known = self._user_number
        return np.fromiter((known.get(user, 0) for user in ids), np.int64)

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write the data set as a folder that is there whole or not at all.

        Args:
            out: folder to make.
            overwrite: replace a sequence data set that stands there.

        Raises:
            FileExistsError: something is there that may not be replaced.
            OSError: the folder cannot be written, because the disk is full for example.
        """
        target = Path(out)
        check_target(target, overwrite, SEQUENCE_MANIFEST)
        with new_folder(target) as folder:
            self._write_items(folder)
            self._write_sequences(folder)
            if self.catalogue.vectors is not None:
                vectors = {"vectors": self.catalogue.vectors.contiguous()}
                save_file(vectors, folder / VECTORS_FILE)
            manifest = SequenceManifest(
                format_version=SEQUENCE_FORMAT,
                rankloom_version=rankloom.__version__,
                name=self.name,
                data_hash=self.data_hash,
                users=len(self.users),
                items=self.catalogue.num_items,
                interactions=self.histories.items.size,
                title_column=self.title_column,
                text_columns=self.text_columns,
                attribute_names=self.catalogue.attribute_names,
                files={path.name: file_info(path) for path in sorted(folder.iterdir())},
            )
            text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
            (folder / SEQUENCE_MANIFEST).write_text(text + "\n", encoding="utf-8")
            sync_folder(folder)

    @classmethod
    def open(
        cls, folder: str | Path, *, verify: Literal["size", "hash"] = "size"
    ) -> "SequenceData":
        """Read a folder that `save` or `prepare_sequences` made.

        Args:
            folder: the data set folder.
            verify: compare the sizes of its files with the manifest, or read and hash them as well.

        Raises:
            FileNotFoundError: there is no such folder, no manifest in it, or a file is missing.
            ValueError: it is damaged, altered, or of another format.
        """
        path = Path(folder)
        manifest = read_sequence_manifest(path)
        verify_files(path, manifest.files, verify)
        frame = pl.read_parquet(path / ITEMS_FILE)
        labels, numbers = [], torch.zeros(frame.height, len(manifest.attribute_names)).long()
        for field, name in enumerate(manifest.attribute_names):
            values, codes = number_values(frame[_ATTRIBUTE + name])
            labels.append(values)
            numbers[:, field] = torch.from_numpy(codes)
        vectors = None
        if VECTORS_FILE in manifest.files:
            vectors = load_file(path / VECTORS_FILE)["vectors"]
        catalogue = Catalogue(
            ids=frame["item_id"].to_list(),
            titles=frame["title"].to_list(),
            texts=frame["text"].to_list(),
            attributes=numbers,
            attribute_names=manifest.attribute_names,
            attribute_labels=tuple(labels),
            vectors=vectors,
        )
        users, histories = _read_sequences(path / SEQUENCES_FILE, catalogue.num_items)
        return cls(
            manifest.name,
            catalogue,
            histories,
            users,
            manifest.title_column,
            manifest.text_columns,
            manifest.data_hash,
        )

    def _write_items(self, folder: Path) -> None:
        catalogue = self.catalogue
        columns = {"item_id": catalogue.ids, "title": catalogue.titles, "text": catalogue.texts}
        frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
        attributes = []
        for field, name in enumerate(catalogue.attribute_names):
            # Number 0, the missing value, takes the last place.
            labels = pl.Series([*catalogue.attribute_labels[field], None], dtype=pl.String)
            places = (catalogue.attributes[:, field] - 1).numpy() % len(labels)
            attributes.append(labels.gather(places).alias(_ATTRIBUTE + name))
        frame.with_columns(attributes).write_parquet(folder / ITEMS_FILE)

    def _write_sequences(self, folder: Path) -> None:
        lists = pa.LargeListArray.from_arrays(
            pa.array(self.histories.offsets, pa.int64()),
            pa.array(self.histories.items.astype(np.int32)),
        )
        users = pa.array(self.users, pa.large_string())
        table = pa.Table.from_arrays([users, lists], names=["user_id", "items"])
        pq.write_table(table, folder / SEQUENCES_FILE)

    @cached_property
    def _user_number(self) -> dict[str, int]:
        return dict(zip(self.users, range(1, len(self.users) + 1), strict=True))


def read_sequence_manifest(folder: Path) -> SequenceManifest:
    """Read and validate `sequences.json`.

    Raises:
        FileNotFoundError: the folder does not exist or holds no manifest.
        ValueError: the manifest is damaged or of another format version.
    """
    path = folder / SEQUENCE_MANIFEST
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no sequence data set (or an interrupted prepare): it has no "
            f"{SEQUENCE_MANIFEST}; make it with `rankloom prepare` of a declaration with "
            "[interactions] or [sequences]"
        )
    values = read_json_values(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != SEQUENCE_FORMAT:
        raise ValueError(
            f"{folder} has format {version}; this rankloom reads sequences of format "
            f"{SEQUENCE_FORMAT}: prepare the data set again"
        )
    return parse_config(SequenceManifest, values, str(path))


def number_values(values: pl.Series) -> tuple[tuple[str, ...], IntArray]:
    """Numbers from 1 for the values of a text column, in order of appearance; 0: missing.

    Returns:
        The values, and [rows] int64 numbers.
    """
    labels = values.drop_nulls().unique(maintain_order=True)
    if labels.is_empty():
        return (), np.zeros(len(values), np.int64)
    numbers = pl.Series(np.arange(1, len(labels) + 1), dtype=pl.Int64)
    coded = values.replace_strict(labels, numbers, default=0, return_dtype=pl.Int64)
    return tuple(labels.to_list()), coded.fill_null(0).to_numpy().copy()


def _read_sequences(path: Path, num_items: int) -> tuple[list[str], Histories]:
    table = pq.read_table(path)
    lists = table.column("items").combine_chunks()
    lengths = lists.value_lengths().to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    items = lists.flatten().to_numpy().astype(np.int64)
    return table.column("user_id").to_pylist(), Histories(items, offsets, num_items)
