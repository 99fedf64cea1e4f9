"""Criteo display advertising, in the format of the Kaggle challenge of 2014.

Tab-separated text without header: label, I1 to I13 (integers, may be empty or negative), C1 to C26
(8 hexadecimal digits, may be empty). The text is kept byte for byte.
"""

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankloom.data.sources.source import Files, Form, SchemaText, Source

INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)
"""Columns of a line, in order."""
MIN_COUNT = 10
SEED = 2018
_LINE_BYTES = 2**16

_SAMPLE = ("train.tsv.gz", "dev.tsv.gz", "test.tsv.gz")
_BINNED = """\
Criteo as click prediction, in the setting that BARS calls Criteo_x4_001: integers become categories
by floor(ln(x)^2) above 2, values seen fewer than 10 times are out of vocabulary."""
_NUMERIC = """\
Criteo as click prediction with the 13 integers as numbers: sign(x) * ln(1 + |x|), 0 where missing;
values of the 26 categories seen fewer than 10 times are out of vocabulary."""
_RANDOM = f"""\
Split at random, 8:1:1, seed {SEED}. (BARS draws its 8:1:1 with scikit-learn's StratifiedKFold, so
its rows fall differently.)"""
_FILES = "A small sample, split as its files are: for trials, not for results."


def _schemas(files: tuple[str, ...]) -> Mapping[str, SchemaText]:
    split_comment = _RANDOM if len(files) == 1 else _FILES
    return {
        "schema": SchemaText(
            _values("criteo", files, binned=True), f"{_BINNED}\n\n{split_comment}"
        ),
        "schema-numeric": SchemaText(
            _values("criteo-numeric", files, binned=False), f"{_NUMERIC}\n\n{split_comment}"
        ),
    }


def _values(name: str, files: tuple[str, ...], *, binned: bool) -> dict[str, Any]:
    integer: dict[str, Any] = {"kind": "numeric", "transform": "log", "fill": 0.0}
    if binned:
        integer = {"kind": "categorical", "transform": "criteo_ln2", "min_count": MIN_COUNT}
    category = {"kind": "categorical", "min_count": MIN_COUNT}
    split: dict[str, Any] = {"kind": "random", "valid": 0.1, "test": 0.1, "seed": SEED}
    if len(files) > 1:
        train, valid, test = files
        split = {"kind": "files", "train": train, "valid": valid, "test": test}
    return {
        "name": name,
        "input": {
            "files": files[0] if len(files) == 1 else list(files),
            "format": "tsv",
            "header": False,
            "columns": list(COLUMNS),
        },
        "features": {
            **dict.fromkeys(INTEGERS, integer),
            **dict.fromkeys(CATEGORIES, category),
        },
        "labels": {"label": {}},
        "split": split,
    }


def _copy(files: Files, into: Path) -> None:
    for name, path in files.items():
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "rb") as source:
            fields = source.readline(_LINE_BYTES).count(b"\t") + 1
        if fields != len(COLUMNS):
            raise ValueError(f"{name}: a line has {len(COLUMNS)} fields; the first has {fields}")
        shutil.copyfile(path, into / name)


def _whole(file: str, name: str) -> Form:
    return Form(name=name, files={file: None}, convert=_copy, schemas=lambda: _schemas((file,)))


CRITEO = Source(
    name="criteo",
    title="Criteo (Kaggle 2014)",
    rows="45,840,617 rows (sample: 8,000)",
    task="click on an advertisement; random split 8:1:1",
    terms="Criteo AI Lab's terms for the challenge data: non-commercial research only",
    citation="Criteo AI Lab, Display Advertising Challenge, Kaggle, 2014",
    page="https://www.kaggle.com/c/criteo-display-ad-challenge",
    forms=(
        Form(
            name="sample",
            files=dict(
                zip(
                    _SAMPLE,
                    (
                        "26f53069b65ee2088d59d084767e9216ba6c8f41b8b728a8702791224bb7ed17",
                        "44be1d5b609d16f1d7422cc60ea3a780cdcd4e104d3a49dfa496254e4eeba59a",
                        "8fc553ff2b10e70800c500761d3310fae6b9f3975b1baceabbff7334235c9062",
                    ),
                    strict=True,
                )
            ),
            convert=_copy,
            schemas=lambda: _schemas(_SAMPLE),
        ),
        _whole("train.txt", "the challenge's training file"),
        _whole("train.txt.gz", "the challenge's training file, compressed"),
    ),
    how_to_get=(
        "it needs a Kaggle account and consent to the challenge's rules "
        "(https://www.kaggle.com/c/criteo-display-ad-challenge; the whole set also stands at "
        "https://ailab.criteo.com/ressources/). Then give --from train.txt, its folder, or "
        "dac.tar.gz"
    ),
)
"""The data set."""
