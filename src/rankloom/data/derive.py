"""Columns computed from raw ones: hour, weekday, weekend, day and timestamp of a time. All UTC."""

from collections.abc import Sequence

import polars as pl

from rankloom.data.delimited import Place
from rankloom.data.table_schema import Derive

ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
SECONDS_PER_DAY = 86_400
FIRST_WEEKDAY = 3
"""1970-01-01 was a Thursday, and Monday is 0."""


def seconds(source: str, dtype: pl.DataType, form: str) -> pl.Expr:
    """Integer seconds since 1970 of a column; missing where the cell is not such a time.

    Args:
        source: the column.
        dtype: its type.
        form: how it writes its time, as `Derive.format`. With `iso`, a column of numbers is taken
            for seconds, which is what timestamps of typed files (Parquet) are read as.

    Raises:
        ValueError: a column of this type cannot hold such times.
    """
    column = pl.col(source)
    if dtype == pl.String and form == "iso":
        return _iso_seconds(column)
    if dtype == pl.String:
        column = column.cast(pl.Int64, strict=False)
    elif not dtype.is_numeric():
        raise ValueError(f"column {source} is of type {dtype}, which holds no {form} times")
    if dtype.is_float():
        column = column.floor().cast(pl.Int64, strict=False)
    if form == "unix_ms":
        return column // 1000
    if form == "yymmddhh":
        return _yymmddhh_seconds(column)
    return column


def derive_columns(frame: pl.DataFrame, derive: Sequence[Derive], place: Place) -> pl.DataFrame:
    """Add the derived columns, in order; a later one may build on an earlier one.

    A missing time gives missing parts.

    Args:
        frame: raw rows.
        derive: what to compute.
        place: where the rows come from, for errors.

    Raises:
        ValueError: a cell is not a time in the stated format; the message gives its row.
    """
    for item in derive:
        whole = seconds(item.source, frame.schema[item.source], item.format)
        part = {
            "timestamp": whole,
            "day": whole // SECONDS_PER_DAY,
            "hour": whole // 3600 % 24,
            "weekday": (whole // SECONDS_PER_DAY + FIRST_WEEKDAY) % 7,
            "weekend": ((whole // SECONDS_PER_DAY + FIRST_WEEKDAY) % 7 >= 5).cast(pl.Int64),
        }[item.kind]
        frame = frame.with_columns(part.cast(pl.Int64).alias(item.name))
        missing = frame[item.name].is_null()
        if missing.any():
            wrong = (missing & frame[item.source].is_not_null()).arg_true()
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"{place.row(row)}: column {item.source} holds {frame[item.source][row]!r}, "
                    f"which is no time of format {item.format}"
                )
    return frame


def _iso_seconds(column: pl.Expr) -> pl.Expr:
    text = column.str.strip_chars().str.replace("T", " ", literal=True).str.strip_suffix("Z")
    zoned = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", strict=False, time_unit="us")
    readings = [text.str.to_datetime(form, strict=False, time_unit="us") for form in ISO_FORMATS]
    readings.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    readings.append(zoned.dt.replace_time_zone(None))
    return pl.coalesce(readings).dt.epoch("s")


def _yymmddhh_seconds(column: pl.Expr) -> pl.Expr:
    text = column.cast(pl.String).str.zfill(8)
    # Through text: a month 13 becomes missing, where arithmetic would carry into the next year.
    day = text.str.head(6).str.to_date("%y%m%d", strict=False)
    hour = column % 100
    return pl.when(hour.is_between(0, 23) & (text.str.len_bytes() == 8)).then(
        day.cast(pl.Int32).cast(pl.Int64) * SECONDS_PER_DAY + hour * 3600
    )
