"""Avazu click-through rate, in the format of the Kaggle challenge of 2014.

CSV with header: id, click, hour (YYMMDDHH) and 21 categories. The rows are kept as they are; a
header line is put before parts that lack it.
"""

import gzip
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankloom.data.sources.source import Files, Form, SchemaText, Source

CATEGORIES = [
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]
COLUMNS = ("id", "click", "hour", *CATEGORIES)
"""Columns of a line, in order."""
MIN_COUNT = 2
SEED = 2018

_SAMPLE = ("train.csv.gz", "dev.csv.gz", "test.csv.gz")
_BLOCK_BYTES = 2**20
_COMMENT = """\
Avazu as click prediction, in the setting that BARS calls Avazu_x4_001: the row's id is left out,
`hour` becomes hour, weekday and weekend, values seen once are out of vocabulary."""
_RANDOM = f"Split at random, 8:1:1, seed {SEED}."
_FILES = """\
A small sample (all of it of one hour), split as its files are: for trials, not for results."""
_CLOCK = {"hour_of_day": "hour", "weekday": "weekday", "weekend": "weekend"}


def _schemas(files: tuple[str, ...]) -> Mapping[str, SchemaText]:
    split: dict[str, Any] = {"kind": "random", "valid": 0.1, "test": 0.1, "seed": SEED}
    if len(files) > 1:
        train, valid, test = files
        split = {"kind": "files", "train": train, "valid": valid, "test": test}
    category = {"kind": "categorical", "min_count": MIN_COUNT}
    values: dict[str, Any] = {
        "name": "avazu",
        "input": {"files": files[0] if len(files) == 1 else list(files), "format": "csv"},
        "derive": [
            {"name": name, "source": "hour", "kind": kind, "format": "yymmddhh"}
            for name, kind in _CLOCK.items()
        ],
        "features": dict.fromkeys((*_CLOCK, *CATEGORIES), category),
        "labels": {"click": {}},
        "split": split,
    }
    comment = f"{_COMMENT}\n\n{_RANDOM if len(files) == 1 else _FILES}"
    return {"schema": SchemaText(values, comment)}


def _copy_whole(target: str) -> Callable[[Files, Path], None]:
    def convert(files: Files, into: Path) -> None:
        (path,) = files.values()
        opener = gzip.open if target.endswith(".gz") else open
        with opener(path, "rb") as source:
            first = source.readline(_BLOCK_BYTES)
        if not _is_header(first):
            raise ValueError(
                f"{path.name}: the first line is not Avazu's header; got {first[:80]!r}"
            )
        shutil.copyfile(path, into / target)

    return convert


def _copy_sample(files: Files, into: Path) -> None:
    for name, path in files.items():
        data = gzip.decompress(path.read_bytes())
        if not _is_header(data.partition(b"\n")[0]):
            data = ",".join(COLUMNS).encode() + b"\n" + data
        # A fixed time in the gzip header: the same sample gives the same bytes.
        (into / name).write_bytes(gzip.compress(data, mtime=0))


def _is_header(line: bytes) -> bool:
    return line.strip().decode("utf-8", "replace").split(",") == list(COLUMNS)


def _whole(file: str, target: str, name: str) -> Form:
    return Form(
        name=name,
        files={file: None},
        convert=_copy_whole(target),
        schemas=lambda: _schemas((target,)),
    )


AVAZU = Source(
    name="avazu",
    title="Avazu (Kaggle 2014)",
    rows="40,428,967 rows (sample: 8,999)",
    task="click on an advertisement; random split 8:1:1",
    terms="rules of the Kaggle challenge: non-commercial, no redistribution",
    citation="Avazu, Click-Through Rate Prediction, Kaggle, 2014",
    page="https://www.kaggle.com/c/avazu-ctr-prediction",
    forms=(
        Form(
            name="sample",
            files=dict(
                zip(
                    _SAMPLE,
                    (
                        "08dc765e89f615bd07a280c3f0d58178850c018cc43a34382d4e550e1960f6cb",
                        "ce911f1b9e1f89b9858e8af7487e000bd8a2118d437ef3df924a840ffe8f4487",
                        "58286e679b003d96b914d4ab047a22d385e8f01ba2f3ced8c36e119fae4825ec",
                    ),
                    strict=True,
                )
            ),
            convert=_copy_sample,
            schemas=lambda: _schemas(_SAMPLE),
        ),
        _whole("train.gz", "train.csv.gz", "the challenge's training file, compressed"),
        _whole("train.csv.gz", "train.csv.gz", "the same under another name"),
        _whole("train.csv", "train.csv", "the challenge's training file, unpacked"),
        _whole("train", "train.csv", "the same under another name"),
    ),
    how_to_get=(
        "it needs a Kaggle account and consent to the challenge's rules "
        "(https://www.kaggle.com/c/avazu-ctr-prediction). Then give --from train.gz, its folder, "
        "or avazu-ctr-prediction.zip"
    ),
)
"""The data set."""
