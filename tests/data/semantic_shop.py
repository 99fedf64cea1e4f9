"""A catalogue of five items with ids by hand, and logs that name them, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from rankloom.data.sequence_store import SequenceData
from rankloom.data.table_schema import (
    Feature,
    LabelSpec,
    SemanticId,
    TableInput,
    TableSchema,
    TimeSplit,
)
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue
from rankloom.retrieval.semantic_ids import SemanticIds

ITEMS = ["a", "b", "c", "d", "cold"]
CODES = [[0, 1, 0], [0, 1, 2], [0, 0, -1], [1, 1, -1], [0, 1, 1]]
"""Codes of `ITEMS`; `cold` begins like a and b."""


def catalogue_of(items: list[str]) -> Catalogue:
    nothing = [""] * len(items)
    return Catalogue(items, nothing, nothing, torch.zeros(len(items), 0, dtype=torch.int64))


def semantic_ids(items: list[str] = ITEMS, codes: list[list[int]] = CODES) -> SemanticIds:
    return SemanticIds(
        np.array(codes, np.int32), (2, 2, 3), items_hash=catalogue_of(items).items_hash
    )


def write_shop(folder: Path, items: list[str] = ITEMS) -> None:
    """`shop` (the sequence data set) and `ids` in a folder."""
    histories = Histories(np.empty(0, np.int64), np.zeros(1, np.int64), len(items))
    SequenceData("shop", catalogue_of(items), histories, []).save(folder / "shop")
    semantic_ids(items).save(folder / "ids")


def feature(**changes: Any) -> SemanticId:
    return SemanticId.model_validate({"column": "item", "ids": "ids", "items": "shop"} | changes)


def write_log(folder: Path, items: list[str | None]) -> None:
    """`log.csv`: one row an hour, clicked every second time, by two users in turn."""
    rows = range(len(items))
    frame = {
        "item": items,
        "user": [f"u{row % 2}" for row in rows],
        "click": [row // 2 % 2 for row in rows],
        "time": [3600 * row for row in rows],
    }
    pl.DataFrame(frame).write_csv(folder / "log.csv")


def declare(features: dict[str, Feature], **more: Any) -> TableSchema:
    return TableSchema(
        name="log",
        input=TableInput(files="log.csv"),
        features=features,
        labels={"click": LabelSpec()},
        **({"split": TimeSplit(column="time", valid=0.0, test=0.25)} | more),
    )
