"""Frappe: use of mobile apps in context, as click prediction with ten id fields.

The form of NFM, AFN and BARS (`Frappe_x1`): each logged use is a positive, with two negatives. Read
from the libfm files of NFM, from the CSV files of BARS, and from Parquet tables. Feature ids are
the published global ones, 0 to 5381, in all three.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rankloom.data.sources.source import Files, Form, SchemaText, Source

FIELDS = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)
"""Fields in the order of the libfm entries."""
SPLITS = ("train", "valid", "test")
_TABLES = ("raw_log.parquet", "item_meta.parquet", "vocab.parquet")


def _schemas() -> Mapping[str, SchemaText]:
    values: dict[str, Any] = {
        "name": "frappe",
        "input": {"files": [f"{split}.parquet" for split in SPLITS]},
        "features": {field: {"kind": "categorical"} for field in FIELDS},
        "labels": {"label": {}},
        "split": {"kind": "files"} | {split: f"{split}.parquet" for split in SPLITS},
    }
    comment = (
        "Frappe as click prediction: is this app used in this context?\n\n"
        "Split as published (7:2:1). Every value that the training split holds is kept."
    )
    return {"schema": SchemaText(values, comment)}


def _from_libfm(files: Files, into: Path) -> None:
    for split in SPLITS:
        path = files[f"frappe.{'validation' if split == 'valid' else split}.libfm"]
        frame = pl.read_csv(
            path,
            separator=" ",
            has_header=False,
            new_columns=["label", *FIELDS],
            infer_schema=False,
        )
        _write(frame.with_columns(pl.col(FIELDS).str.strip_suffix(":1")), into, split)


def _from_csv(files: Files, into: Path) -> None:
    for split in SPLITS:
        _write(pl.read_csv(files[f"{split}.csv"], infer_schema=False), into, split)


def _from_parquet(files: Files, into: Path) -> None:
    for split in SPLITS:
        _write(pl.read_parquet(files[f"{split}.parquet"]), into, split)
    for name in _TABLES:
        if name in files:
            shutil.copyfile(files[name], into / name)


def _write(frame: pl.DataFrame, into: Path, split: str) -> None:
    # NFM writes the negatives' label as -1. `exact` marks rows of a rebuilt training file that are
    # certainly the published ones; it is kept where it is there.
    label = pl.col("label").cast(pl.Float64).cast(pl.Int64).clip(lower_bound=0)
    kept = [column for column in ("exact",) if column in frame.columns]
    frame.select(label, pl.col(FIELDS).cast(pl.Int64), *kept).write_parquet(
        into / f"{split}.parquet"
    )


FRAPPE = Source(
    name="frappe",
    title="Frappe",
    rows="288,609 rows",
    task="use of an app in a context; published split 7:2:1",
    terms=(
        "research use with citation; no commercial use, no redistribution and no attempt to "
        "identify users without permission"
    ),
    citation=(
        "Baltrunas, Church, Karatzoglou and Oliver, Frappe: Understanding the Usage and "
        "Perception of Mobile App Recommendations In-The-Wild, arXiv:1505.03014, 2015"
    ),
    page="https://github.com/hexiangnan/neural_factorization_machine",
    forms=(
        Form(
            name="libfm files of NFM",
            files={
                "frappe.train.libfm": None,
                "frappe.validation.libfm": (
                    "fdf4be563a7dd9b15f7a6e8b32671e90e6e7a2a2bd3af4e10bf13c5ad7e76e9e"
                ),
                "frappe.test.libfm": (
                    "a2ebaef3a9af8e55f8bb0d08bc4923965e42e43760ebd7635ac2f8c5db99e097"
                ),
            },
            convert=_from_libfm,
            schemas=_schemas,
        ),
        Form(
            name="CSV files of BARS, Frappe_x1",
            files={
                "train.csv": None,
                "valid.csv": "72b6a89fee413def6936bf0ab0be30b8c5aa200bd1d1fc533aca6eb0d3dd98e2",
                "test.csv": "f09423427a86efc87f9da3b7a2eb9bdd77f117e13458b00400e9d9fc8ac4f6d7",
            },
            convert=_from_csv,
            schemas=_schemas,
        ),
        Form(
            name="Parquet tables",
            files={
                "train.parquet": "f226862f7245b1d4479d2fbf0e48e4cf38df1f26cfa5485cafb28d51fbecd195",
                "valid.parquet": "2f56e90c5fb4fa038ebb8eaea69dc7e550911d443b41339265c1d07bc8dc8804",
                "test.parquet": "891bf0747ef5235c02cda8202c8b5469635ce5a76b3486f8157e3da21e7e8bd5",
            },
            convert=_from_parquet,
            schemas=_schemas,
            optional={
                "raw_log.parquet": (
                    "f6f701713b42459ffa43d4ce1a479005ccc1b94602408b5499299441000b4985"
                ),
                "item_meta.parquet": (
                    "367a3469d2b79ccfbccfa4bae556cd283f17f4bde06219f5c7671eaed5b75576"
                ),
                "vocab.parquet": (
                    "72ca442d2fcb5067f53cfa1c4dc5bd1c119ddd96e5692af811bfcbe76d2ae166"
                ),
            },
        ),
    ),
    how_to_get=(
        "its terms forbid passing it on. Get the three libfm files (folder data/frappe of "
        "https://github.com/hexiangnan/neural_factorization_machine) or the three CSV files of "
        "Frappe_x1 (https://huggingface.co/datasets/reczoo/Frappe_x1), then give --from FOLDER"
    ),
)
"""The data set."""
