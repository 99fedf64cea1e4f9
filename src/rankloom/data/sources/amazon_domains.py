"""Amazon Beauty, Toys and Sports together: three domains with shared users as one click log.

Read from the three data sets' own Parquet tables, each in a folder of its name. A reviewer has one
number in all three (`global_user`), and an item of one domain never stands for one of another: item
numbers are counted on from domain to domain.

Rows, histories, split and negatives are those of `rankloom.data.sources.amazon` inside every
domain: a user's sequence in a domain begins and ends there, and negatives are of the same domain.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rankloom.data.sources.amazon import (
    AMAZON_BEAUTY,
    AMAZON_SPORTS,
    AMAZON_TOYS,
    FIRST_HISTORY,
    HISTORY_LENGTH,
    SEED,
    reviews_in_order,
    with_side_fields,
)
from rankloom.data.sources.source import Files, Form, SchemaText, Source

DOMAINS = {"beauty": AMAZON_BEAUTY, "toys": AMAZON_TOYS, "sports": AMAZON_SPORTS}
"""Domain -> the data set it is taken from; items are numbered in this order."""
_SIDE_FIELDS = ("department", "category", "brand")
_COMMENT = f"""\
Amazon Beauty, Toys and Sports as three domains: which item does a user review next there?

The domain is the scenario, and a feature as well, so that a model without parts for scenarios sees
it. The user is a feature here, unlike in the data sets of one domain: it is what the domains share.
Items are not shared, and have numbers of their own in every domain.

A sequence is what one user reviewed in one domain, oldest first. Each item of it from the third on
is a positive, seen with the sequence's earlier items, the newest {HISTORY_LENGTH}, and has one
negative, drawn evenly from the domain's items that are nowhere in the sequence. The last item of
every sequence is the test split, the one before it the validation split. There are no times, only
an order inside a sequence: a test row of one domain may be older than a training row of another.

GAUC groups by sequence, as in the data sets of one domain. Brands and categories of the same name
are the same in every domain; Toys has no brands."""


def _schemas() -> Mapping[str, SchemaText]:
    values: dict[str, Any] = {
        "name": "amazon-domains",
        "input": {"files": "interactions.parquet"},
        "features": {name: {"kind": "categorical"} for name in ("domain", "user_id", "item_id")},
        "labels": {"bought": {}},
        "roles": {"scenario": "domain", "group": "sequence_id", "time": "order"},
        "entities": {
            "item": {
                "input": {"files": "items.parquet"},
                "key": "item_id",
                "feature": "item_id",
                "features": {field: {"kind": "categorical"} for field in _SIDE_FIELDS},
            }
        },
        "history": [
            {
                "name": "history",
                "user": "sequence_id",
                "time": "order",
                "members": ["item_id"],
                "max_length": HISTORY_LENGTH,
                "min_length": FIRST_HISTORY,
            }
        ],
        "negatives": {
            "user": "sequence_id",
            "item": "item_id",
            "label": "bought",
            "within": "domain",
            "seed": SEED,
        },
        "split": {"kind": "leave_one_out", "user": "sequence_id", "time": "order"},
    }
    return {"schema": SchemaText(values, _COMMENT)}


def _from_parquet(files: Files, into: Path) -> None:
    all_reviews, all_items = [], []
    num_users = num_items = 0
    for domain, source in DOMAINS.items():
        sequences = pl.read_parquet(
            files[f"{source.name}/sequences.parquet"], columns=["user_id", "global_user", "items"]
        )
        items = pl.read_parquet(files[f"{source.name}/items.parquet"])
        try:
            reviews = reviews_in_order(sequences, items)
            users = _users(sequences)
            # What is counted on from a domain to the next would meet the last of the one before.
            for column, numbers in (("user_id", users), ("item_id", items)):
                if (least := numbers.select(pl.min(column)).item()) < 1:
                    raise ValueError(f"{column} must count from 1; got {least}")
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None
        all_reviews.append(
            reviews.join(users, on="user_id", how="left", maintain_order="left").select(
                pl.lit(domain).alias("domain"),
                pl.col("global_user").alias("user_id"),
                (pl.col("user_id") + num_users).alias("sequence_id"),
                pl.col("item_id") + num_items,
                "order",
            )
        )
        brand = "brand" if "brand" in items.columns else pl.lit(None, pl.String).alias("brand")
        all_items.append(
            with_side_fields(items).select(
                pl.col("item_id") + num_items,
                pl.lit(domain).alias("domain"),
                "department",
                "category",
                brand,
            )
        )
        num_users += users.select(pl.max("user_id")).item()
        num_items += items.select(pl.max("item_id")).item()
    pl.concat(all_reviews).write_parquet(into / "interactions.parquet")
    pl.concat(all_items).write_parquet(into / "items.parquet")


def _users(sequences: pl.DataFrame) -> pl.DataFrame:
    """`user_id` in the domain and `global_user` of every sequence."""
    for column in ("user_id", "global_user"):
        double = sequences.filter(sequences.select(column).is_duplicated())
        if double.height:
            raise ValueError(f"a user has one sequence; {column} {double[column][0]} has several")
    return sequences.select(pl.col("user_id", "global_user").cast(pl.Int64))


AMAZON_DOMAINS = Source(
    name="amazon-domains",
    title="Amazon Beauty, Toys and Sports as three domains (2014, 5-core)",
    rows="662,436 reviews",
    task="next item of a domain against a drawn one; a user's last item there is the test split",
    terms=AMAZON_BEAUTY.terms,
    citation=AMAZON_BEAUTY.citation,
    page=AMAZON_BEAUTY.page,
    forms=(
        Form(
            name="Parquet tables of the three data sets",
            files={
                f"{source.name}/{file}": checksum
                for source in DOMAINS.values()
                for file, checksum in source.forms[0].files.items()
            },
            convert=_from_parquet,
            schemas=_schemas,
        ),
    ),
    how_to_get=(
        "make the tables of amazon-beauty, amazon-toys and amazon-sports "
        "(https://github.com/RUCAIBox/CIKM2020-S3Rec), each in a folder of that name, with a "
        "column global_user in sequences.parquet that numbers a reviewer alike in all three, then "
        "give --from FOLDER_OF_THE_THREE --no-verify"
    ),
)
"""The data set."""
