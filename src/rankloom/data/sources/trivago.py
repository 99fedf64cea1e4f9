"""trivago hotel search (RecSys Challenge 2019): which of the shown hotels is clicked?

The challenge's log has one line per action of a session. A click-out is a request: its line lists
the hotels that were shown, with prices. Each of them becomes a row, the clicked one a positive,
with the session's earlier actions on hotels as its history. Click-outs on a hotel that was not
shown are no requests; they stay in the histories of later ones.

The log may be larger than memory: it is cut into parts by a hash of the session, and one part at a
time becomes rows, some thousand requests at once.
"""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rankloom.data.hashing import hash_values
from rankloom.data.history import HistoryIndex, index_history
from rankloom.data.read import open_table
from rankloom.data.sources.source import Files, Form, SchemaText, Source
from rankloom.data.table_schema import TableInput

HISTORY_LENGTH = 30
"""Earlier actions kept per row."""
MAX_FILTERS = 14
"""Search filters kept per row; no line of the sample has more."""
MAX_PROPERTIES = 32
"""Properties kept per hotel."""
CLICKOUT = "clickout item"
ITEM_ACTIONS = (
    CLICKOUT,
    "interaction item deals",
    "interaction item image",
    "interaction item info",
    "interaction item rating",
    "search for item",
)
"""Actions whose reference is a hotel; the others name a place, a filter or an order."""

_TYPES = {
    "session_id": "text",
    "timestamp": "integer",
    "step": "integer",
    "action_type": "text",
    "reference": "text",
    "platform": "text",
    "city": "text",
    "device": "text",
    "current_filters": "text",
    "impressions": "text",
    "prices": "text",
}
_NUM_PARTS = 16
_REQUESTS_AT_ONCE = 2**12
_COMMENT = """\
trivago hotel search as click prediction: one row per hotel that a click-out's list showed, one
click per list. A row sees the session's earlier actions on hotels, and GAUC groups by list.

Sessions in the order of their first click-out: the last tenth is the test split, the tenth before
it the validation split, so the splits overlap in time by the length of a session. The user is no
feature: hardly any comes back.

Scenario: the platform, a country's site. It is a field too, so that a model without parts for
scenarios sees it. Most platforms are small: report those with few clicks together. The position in
the list is a field, for clicks depend on it; a list that is yet to be ordered has none."""


def _schemas(*, properties: bool) -> Mapping[str, SchemaText]:
    values: dict[str, Any] = {
        "name": "trivago",
        "input": {"files": "impressions.parquet"},
        "features": {
            "item_id": {"kind": "categorical", "min_count": 2},
            "platform": {"kind": "categorical"},
            "city": {"kind": "categorical"},
            "device": {"kind": "categorical"},
            "position": {"kind": "categorical"},
            "price": {"kind": "numeric", "transform": "log"},
            "filters": {"kind": "sequence", "max_length": MAX_FILTERS},
        },
        "labels": {"click": {}},
        "roles": {"scenario": "platform", "group": "request_id", "time": "timestamp"},
        "sequence_groups": {
            "history": {
                "members": {
                    "item": {"column": "history_item", "vocabulary": "item_id"},
                    "action": {"column": "history_action"},
                    "time": {"column": "history_time", "kind": "time"},
                },
                "max_length": HISTORY_LENGTH,
            }
        },
        "split": {"kind": "column", "column": "split"},
    }
    if properties:
        values["entities"] = {
            "item": {
                "input": {"files": "items.parquet"},
                "key": "item_id",
                "feature": "item_id",
                "features": {"properties": {"kind": "sequence", "max_length": MAX_PROPERTIES}},
            }
        }
    return {"schema": SchemaText(values, _COMMENT)}


def _from_log(files: Files, into: Path) -> None:
    (log,) = (path for name, path in files.items() if name in _LOGS)
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=into) as scratch:
        parts, splits = _cut(log, Path(scratch))
        writer = None
        try:
            for part in parts:
                for rows in _shown_items(pl.read_parquet(part), splits):
                    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
                    if writer is None:
                        writer = pq.ParquetWriter(
                            into / "impressions.parquet", table.schema, compression="zstd"
                        )
                    writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    if writer is None:
        raise ValueError(f"{log.name} has no click-out on a hotel that its list shows")


def _from_log_and_items(files: Files, into: Path) -> None:
    _from_log(files, into)
    table = open_table(
        TableInput(files=files["item_metadata.csv"].name, types={"properties": "text"}),
        files["item_metadata.csv"].parent,
    )
    table.collect(["item_id", "properties"]).write_parquet(into / "items.parquet")


def _cut(log: Path, folder: Path) -> tuple[list[Path], pl.DataFrame]:
    """Write the log's actions on hotels into parts, all of a session in one.

    Returns:
        The parts, and session_id, split of the sessions with a request.
    """
    table = open_table(TableInput.model_validate({"files": log.name, "types": _TYPES}), log.parent)
    paths = [folder / f"{number:02d}.parquet" for number in range(_NUM_PARTS)]
    writers: list[pq.ParquetWriter] = []
    firsts: list[pl.DataFrame] = []
    row = 0
    try:
        for chunk in table.chunks(list(_TYPES)):
            actions = _on_items(chunk, row)
            row += chunk.height
            firsts.append(_first_requests(actions.filter("is_request")))
            whole = actions.to_arrow(compat_level=pl.CompatLevel.oldest())
            if not writers:
                writers = [pq.ParquetWriter(path, whole.schema) for path in paths]
            part = hash_values(actions["session_id"]) % np.uint64(_NUM_PARTS)
            for number, writer in enumerate(writers):
                writer.write_table(whole.filter(pa.array(part == number)))
    finally:
        for writer in writers:
            writer.close()
    if not writers:
        raise ValueError(f"{log.name} has no rows")
    sessions = _first_requests(pl.concat(firsts)).sort("timestamp", "row")
    rank, count = pl.int_range(pl.len()), sessions.height
    split = (
        pl.when(rank < count * 8 // 10)
        .then(pl.lit("train"))
        .when(rank < count * 9 // 10)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    return paths, sessions.select("session_id", split.alias("split"))


def _on_items(chunk: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """The actions whose reference is a hotel, with their place in the log and what they are."""
    listed = pl.col("impressions").str.split("|").list.contains(pl.col("reference"))
    return (
        chunk.with_row_index("row", first_row)
        .filter(
            pl.col("action_type").is_in(ITEM_ACTIONS)
            # Some references of these actions are "unknown".
            & pl.col("reference").str.contains(r"^\d+$").fill_null(value=False)
        )
        .with_columns(
            pl.col("row").cast(pl.Int64),
            pl.col("reference").cast(pl.Int64).alias("item"),
            ((pl.col("action_type") == CLICKOUT) & listed.fill_null(value=False)).alias(
                "is_request"
            ),
        )
    )


def _first_requests(requests: pl.DataFrame) -> pl.DataFrame:
    """session_id, timestamp and row of each session's first request."""
    return (
        requests.select("session_id", "timestamp", "row")
        .sort("timestamp", "row")
        .unique("session_id", keep="first", maintain_order=True)
    )


def _shown_items(actions: pl.DataFrame, splits: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows of the requests among some sessions' actions, a few thousand requests at a time."""
    # A few sessions restart their steps, so the time comes first.
    actions = actions.sort("session_id", "timestamp", "step", "row")
    session = actions["session_id"].rle_id().cast(pl.Int32).to_numpy()
    place = np.arange(actions.height)
    everything = np.ones(actions.height, dtype=np.bool_)
    index = index_history(session, place, everything, HISTORY_LENGTH)
    found = actions["is_request"].arg_true().to_numpy().astype(np.int64)
    for start in range(0, len(found), _REQUESTS_AT_ONCE):
        rows = found[start : start + _REQUESTS_AT_ONCE]
        requests = actions[rows].join(splits, on="session_id", how="left", maintain_order="left")
        yield _explode(requests.with_columns(_histories(actions, index, rows)))


def _histories(
    actions: pl.DataFrame, index: HistoryIndex, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> list[pl.Series]:
    offsets, events = index.lists(rows)
    past = actions[events]
    columns = {"item": "item", "action": "action_type", "time": "timestamp"}
    return [
        pl.Series(
            f"history_{name}",
            pa.LargeListArray.from_arrays(pa.array(offsets), past[column].to_arrow()),
        )
        for name, column in columns.items()
    ]


def _explode(requests: pl.DataFrame) -> pl.DataFrame:
    """One row per shown hotel."""
    lists = requests.with_columns(
        pl.col("impressions", "prices").str.split("|").cast(pl.List(pl.Int64))
    )
    wrong = lists.filter(
        pl.col("impressions").list.len() != pl.col("prices").list.len().fill_null(0)
    )
    if wrong.height:
        raise ValueError(
            f"session {wrong['session_id'][0]}, step {wrong['step'][0]}: a click-out lists "
            f"{len(wrong['impressions'][0])} hotels and needs as many prices"
        )
    return (
        lists.with_columns(pl.int_ranges(1, pl.col("impressions").list.len() + 1).alias("position"))
        .explode("impressions", "prices", "position")
        .select(
            pl.col("row").alias("request_id"),
            "session_id",
            "timestamp",
            "split",
            "platform",
            "city",
            "device",
            pl.col("current_filters").alias("filters"),
            "position",
            pl.col("impressions").alias("item_id"),
            pl.col("prices").alias("price"),
            (pl.col("impressions") == pl.col("item")).cast(pl.Int64).alias("click"),
            "history_item",
            "history_action",
            "history_time",
        )
    )


_LOGS = ("train.csv", "log.parquet")

TRIVAGO = Source(
    name="trivago",
    title="trivago hotel search (RecSys Challenge 2019)",
    rows="about 15.9 million actions (sample: 100,003, with 312,514 shown hotels)",
    task=(
        "click on a shown hotel, from the session so far, in scenarios by platform; sessions in "
        "time order 8:1:1"
    ),
    terms="trivago's for the RecSys Challenge 2019: research, non-commercial",
    citation=(
        "Knees et al., RecSys Challenge 2019: Session-Based Hotel Recommendations, RecSys 2019"
    ),
    page="https://recsys.trivago.cloud/challenge/dataset/",
    forms=(
        Form(
            name="the challenge's log and hotels",
            files={"train.csv": None, "item_metadata.csv": None},
            convert=_from_log_and_items,
            schemas=partial(_schemas, properties=True),
        ),
        Form(
            name="the challenge's log",
            files={"train.csv": None},
            convert=_from_log,
            schemas=partial(_schemas, properties=False),
        ),
        Form(
            name="sample of the log",
            files={
                "log.parquet": "f8ccb3e2b99fc566412e0317e8a33541f50214e4b44659e7e49d8e228c5002e3"
            },
            convert=_from_log,
            schemas=partial(_schemas, properties=False),
        ),
    ),
    how_to_get=(
        "agree to its terms at https://recsys.trivago.cloud/challenge/dataset/, then give --from "
        "the archive, its folder or train.csv"
    ),
)
"""The data set."""
