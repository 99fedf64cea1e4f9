"""Hillstrom's e-mail test (MineThatData, 2008): visit, then conversion, of 64,000 customers.

Each customer was sent one of two e-mails or none, drawn at random; the two weeks after it say
whether the customer visited the site and whether something was bought. Both labels have the
customers' whole space to be known in, which logs of clicks and conversions seldom have.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import polars as pl

from rankloom.data.sources.source import Files, Form, SchemaText, Source

ADDRESS = (
    "http://www.minethatdata.com/"
    "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv"
)
"""Where the author offers the file."""
SEED = 2008
_IDS = ("recency", "history_segment", "mens", "womens", "zip_code", "newbie", "segment", "channel")
_NUMBERS = ("history",)
_LABELS = ("visit", "conversion")

_COMMENT = f"""\
Hillstrom's e-mail test: does a customer visit the site, and does the visit end in a purchase?

Labels in funnel order. Nobody buys without a visit, and conversion has no label where there was no
visit: a conversion rate is learned from visits alone, or by way of the funnel.

Scenario: the channel through which the customer bought in the past year. It is a field too, so that
a model without parts for scenarios sees it. segment is the e-mail that was drawn for the customer.
What was spent is left out, for it tells both labels.

Recency (months, 1 to 12) and the flags are ids. history, the money of the past year, is a number;
history_segment is the same in seven steps, as published.

Split: random, 8:1:1, seed {SEED}. Each channel's visits and purchases have the same shares in every
split (column stratum), for purchases are few. Customers with equal values are different customers,
and nothing keeps them together."""


def _schemas() -> Mapping[str, SchemaText]:
    values = {
        "name": "hillstrom",
        "input": {"files": "customers.parquet"},
        "features": {name: {"kind": "categorical"} for name in _IDS}
        | {name: {"kind": "numeric", "transform": "log"} for name in _NUMBERS},
        "labels": {"visit": {}, "conversion": {"after": "visit"}},
        "roles": {"scenario": "channel"},
        "split": {
            "kind": "random",
            "valid": 0.1,
            "test": 0.1,
            "seed": SEED,
            "stratify": "stratum",
        },
    }
    return {"schema": SchemaText(values, _COMMENT)}


def _from_csv(name: str, files: Files, into: Path) -> None:
    _write(pl.read_csv(files[name], columns=[*_IDS, *_NUMBERS, *_LABELS]), into)


def _from_parquet(files: Files, into: Path) -> None:
    columns = [*_IDS, *_NUMBERS, *_LABELS]
    _write(pl.read_parquet(files["hillstrom.parquet"], columns=columns), into)


def _write(customers: pl.DataFrame, into: Path) -> None:
    wrong = customers.with_row_index("row").filter(
        (pl.col("conversion") == 1) & (pl.col("visit") != 1)
    )
    if wrong.height:
        raise ValueError(
            f"row {wrong['row'][0] + 1}: a conversion needs a visit; got conversion=1, "
            f"visit={wrong['visit'][0]}"
        )
    numbers = [name for name, kind in customers.schema.items() if kind.is_integer()]
    customers.select(
        pl.col(*_IDS, *_NUMBERS, *_LABELS),
        pl.concat_str(pl.col("channel", *_LABELS).cast(pl.String), separator=", ").alias("stratum"),
    ).with_columns(
        pl.col(numbers).cast(pl.Int64),
        pl.col("history").cast(pl.Float64),
        pl.col("history_segment", "zip_code", "segment", "channel").cast(pl.String),
    ).write_parquet(into / "customers.parquet")


def _csv_form(name: str) -> Form:
    return Form(
        name="CSV file",
        files={name: None},
        convert=partial(_from_csv, name),
        schemas=_schemas,
    )


HILLSTROM = Source(
    name="hillstrom",
    title="Hillstrom's e-mail test (MineThatData 2008)",
    rows="64,000 customers",
    task="visit, then conversion, in three scenarios (channels); random split 8:1:1",
    terms="released by its author for public analysis; no formal licence",
    citation="Hillstrom, The MineThatData E-Mail Analytics And Data Mining Challenge, 2008",
    page="https://blog.minethatdata.com/2008/03/minethatdata-e-mail-analytics-and-data.html",
    forms=(
        _csv_form(ADDRESS.rpartition("/")[2]),
        _csv_form("hillstrom.csv"),
        Form(
            name="Parquet table",
            files={
                "hillstrom.parquet": (
                    "b7bceb32d2fb5ece4233a2296db37606b0a892b474b41b698f8264a39d5696d9"
                )
            },
            convert=_from_parquet,
            schemas=_schemas,
        ),
    ),
    how_to_get=(
        "no checksum of it is published. Its author presents it on https://blog.minethatdata.com/"
        f"2008/03/minethatdata-e-mail-analytics-and-data.html; give --from {ADDRESS}, or a folder "
        "with that file"
    ),
)
"""The data set."""
