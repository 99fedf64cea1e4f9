"""IJCAI-18 Alimama, a sample of the advertising contest: does a click end in a purchase?

Read from two Parquet tables, `train.parquet` and `test.parquet`, of 20,000 and 7,999 clicks on
search advertisements, about 2 % of them with a purchase. Clicks are sorted by item, roughly, and
the cut between the tables follows that order: hardly any item is in both. There are no times.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rankloom.data.hashing import value_draws
from rankloom.data.sources.source import Files, Form, SchemaText, Source

SEED = 2018
HELD_OUT = 0.2
"""Share of the validation split, and of the test split where it is drawn here."""

_CATEGORIES = "item_category_list"
IDS = (
    "context_page_id",
    "user_id",
    "user_gender_id",
    "user_age_level",
    "user_occupation_id",
    "user_star_level",
    "item_id",
    "item_brand_id",
    "item_city_id",
    "item_price_level",
    "item_sales_level",
    "item_collected_level",
    "item_pv_level",
    "shop_id",
    "shop_review_num_level",
    "shop_star_level",
)
"""Columns of ids and levels."""
RATES = (
    "shop_review_positive_rate",
    "shop_score_service",
    "shop_score_delivery",
    "shop_score_description",
)
"""Columns of rates, 0 to 1."""
_MANY_VALUES = ("user_id", "item_id", "item_brand_id", "shop_id")

_COMMENT = """\
IJCAI-18 Alimama (a sample): does the click on an advertisement in a search end in a purchase?

Every row is a click, so every row has the label. Scenario: the page of results that showed the
advertisement. It is a field too, so that a model without parts for scenarios sees it. Later pages
have few purchases: report them together.

The shop's rates are numbers, everything else is an id; an item has several categories. Users,
items, brands and shops seen once in training are out of vocabulary, so that the value which stands
for unknown ones is trained.

{split}"""
_SHUFFLED = f"""\
Split: the clicks of both tables at random, by a hash with seed {SEED} (column split); validation
and test have a share of {HELD_OUT} each. One in fifty clicks ends in a purchase, and a tenth of the
clicks would hold too few to compare models on. All clicks of a user on an item are in one split:
repeated clicks, many of them equal in every column, are kept, and none has a copy in another."""
_COLD = f"""\
Split: the test table as published, in which nearly all items and shops are new: a test of new
items. Validation is of the same kind: a share of {HELD_OUT} of the training table's items, with all
of their clicks, by a hash with seed {SEED}. Repeated clicks are kept."""


def _schemas() -> Mapping[str, SchemaText]:
    shuffled = _values("ijcai18-cvr", {"kind": "column", "column": "split"})
    cold = _values(
        "ijcai18-cvr-cold",
        {
            "kind": "files",
            "train": "train.parquet",
            "test": "test.parquet",
            "valid_share": HELD_OUT,
            "valid_by": "item_id",
            "seed": SEED,
        },
    )
    return {
        "schema": SchemaText(shuffled, _COMMENT.format(split=_SHUFFLED)),
        "schema-cold": SchemaText(cold, _COMMENT.format(split=_COLD)),
    }


def _values(name: str, split: dict[str, Any]) -> dict[str, Any]:
    features: dict[str, Any] = {field: {"kind": "categorical"} for field in IDS}
    for field in _MANY_VALUES:
        features[field]["min_count"] = 2
    features[_CATEGORIES] = {"kind": "sequence", "max_length": 3}
    features |= {field: {"kind": "numeric", "transform": "min_max"} for field in RATES}
    return {
        "name": name,
        "input": {"files": ["train.parquet", "test.parquet"]},
        "features": features,
        "labels": {"purchase": {"column": "is_trade"}},
        "roles": {"scenario": "context_page_id"},
        "split": split,
    }


def _from_parquet(files: Files, into: Path) -> None:
    for name, path in files.items():
        clicks = pl.read_parquet(path, columns=["is_trade", *IDS, _CATEGORIES, *RATES])
        pair = clicks.select(pl.concat_str("user_id", "item_id", separator=" ")).to_series()
        draw = pl.Series(value_draws(pair, SEED))
        split = (
            pl.when(draw < HELD_OUT)
            .then(pl.lit("test"))
            .when(draw < 2 * HELD_OUT)
            .then(pl.lit("valid"))
            .otherwise(pl.lit("train"))
        )
        clicks.with_columns(
            pl.col("is_trade", *IDS).cast(pl.Int64), split.alias("split")
        ).write_parquet(into / name)


IJCAI18_CVR = Source(
    name="ijcai18-cvr",
    title="IJCAI-18 Alimama search conversion (sample)",
    rows="27,999 clicks",
    task="purchase after a click, in scenarios by page; random split 6:2:2, or a test of new items",
    terms="Tianchi and Alibaba's for the contest's data: research, non-commercial",
    citation="Alimama, IJCAI-18 International Advertising Algorithm Contest, Tianchi, 2018",
    page="https://tianchi.aliyun.com/dataset/147588",
    forms=(
        Form(
            name="Parquet tables",
            files={
                "train.parquet": "959fcb56ffb75ea9b4bd3d3c560a52967ef5d27cffbfeedd7d96727a6a8a8716",
                "test.parquet": "8c2a29c3f22b3cb5cbf7d05ce979b4c3b5b088ab3ea9867ccc3460c4521e7a6c",
            },
            convert=_from_parquet,
            schemas=_schemas,
        ),
    ),
    how_to_get=(
        "make train.parquet and test.parquet, with the contest's column names and "
        "item_category_list as a list, of the sample files train.tiny.csv and test.tiny.csv of "
        "https://github.com/amuier/IJCAI-18-Adver-prediction, then give --from FOLDER --no-verify"
    ),
)
"""The data set."""
