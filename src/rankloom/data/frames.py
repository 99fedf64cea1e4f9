"""Frames in, frames out: polars, pandas and pyarrow tables are taken alike."""

from typing import Any

import polars as pl
import pyarrow as pa


def to_polars(frame: Any) -> pl.DataFrame:
    """Turn a polars, pandas or pyarrow table (or a dictionary of columns) into a polars frame.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, pa.Table | pa.RecordBatch):
        table = pl.from_arrow(frame)
        assert isinstance(table, pl.DataFrame)
        return table
    if isinstance(frame, dict):
        return pl.DataFrame(frame)
    if type(frame).__module__.partition(".")[0] == "pandas":  # pandas is no dependency
        table = pl.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))
        assert isinstance(table, pl.DataFrame)
        return table
    raise TypeError(
        f"a frame is a polars, pandas or pyarrow table or a dictionary of columns; "
        f"got {type(frame).__name__}"
    )


def like(result: pl.DataFrame, frame: Any) -> Any:
    """Return `result` as the kind of frame that the caller gave; dictionaries get polars."""
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return result.to_arrow()
    if type(frame).__module__.partition(".")[0] == "pandas":
        return result.to_arrow().to_pandas()
    return result
