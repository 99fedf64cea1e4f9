"""Types of raw columns: what every format's own types are turned into."""

from collections.abc import Sequence
from typing import Literal

import polars as pl

Kind = Literal["category", "number"]
"""What a column is used for, where it is only used for that: it settles doubtful types."""

Types = dict[str, pl.DataType]


def plain_type(dtype: pl.DataType) -> pl.DataType:
    """Type that a raw type is turned into; see the head of this module."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return pl.List(pl.Float32() if inner == pl.Float32 else plain_type(inner))
    if dtype in (pl.Int128, pl.Null, pl.String) or isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if dtype.is_integer() or dtype == pl.Boolean or dtype in (pl.Date,):
        return pl.Int64()
    if isinstance(dtype, pl.Datetime):
        return pl.Int64()
    if dtype.is_float() or dtype.is_decimal():
        return pl.Float64()
    return dtype


def to_types(frame: pl.DataFrame, types: Types, source: str = "the table") -> pl.DataFrame:
    """Cast the columns of a frame to the table's types, NaN to missing.

    Raises:
        ValueError: a value does not fit the type that the first file gave the column.
    """
    casts: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            casts.append(pl.col(name).dt.epoch("s").cast(types[name]))
        elif types[name] == pl.Float64:
            casts.append(pl.col(name).cast(pl.Float64).fill_nan(None))
        elif dtype != types[name]:
            casts.append(pl.col(name).cast(types[name]))
    try:
        return frame.with_columns(casts) if casts else frame
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: not the types of the first file: {reason}") from None


def settle(
    dtype: pl.DataType, declared: str | None, kind: Kind | None
) -> tuple[pl.DataType, pl.DataType]:
    """Type to parse a text column as, and its final type."""
    if declared is not None:
        forced = {"integer": pl.Int64(), "number": pl.Float64(), "text": pl.String()}[declared]
        return forced, forced
    if kind == "number":
        return (pl.Boolean() if dtype == pl.Boolean else pl.Float64()), pl.Float64()
    if kind == "category":
        settled = pl.Int64() if dtype == pl.Int64 else pl.String()
        return settled, settled
    plain = plain_type(dtype)
    return (dtype if dtype == pl.Boolean else plain), plain


def check_present(wanted: Sequence[str], present: Sequence[str] | Types, file: str) -> None:
    """Raise ValueError that lists the columns there are when one of `wanted` is missing."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; its columns are {', '.join(present)}"
        )


def distinct(names: list[str], file: str, hint: str = "") -> list[str]:
    """Return the names, or raise ValueError for those that are there twice."""
    double = sorted({name or "(no name)" for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"{file}: column {', '.join(double)} is there more than once{hint}")
    return names
