"""Amazon reviews of 2014, 5-core: Beauty, Toys and Sports as click prediction from a history.

Read from Parquet tables: `sequences.parquet` holds each user's items in time order, as S3-Rec's
files have them, `items.parquet` what is known of an item. There are no times, only an order.

Each item of a user from the third on is a positive, with negatives drawn from the items that are
nowhere in the user's sequence. The user's last item is the test split, the one before it the
validation split. That is DIN's protocol for Amazon Electronics, with a validation split of its own.

As sequences of items, for retrieval, the same reviews need no negatives.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rankloom.data.sources.source import Files, Form, SchemaText, SequencesText, Source

HISTORY_LENGTH = 50
"""Earlier items kept per row."""
FIRST_HISTORY = 2
"""Earlier items that a row needs: the first two items of a user have no row."""
HELD_OUT_NEGATIVES = 10
"""Negatives of a held-out positive in the second schema."""
SEED = 2014

_TERMS = (
    "for research, with citation; no licence for passing on is stated, and the texts of the items "
    "belong to Amazon and its sellers"
)
_CITATION = (
    "He and McAuley, Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
    "Collaborative Filtering, WWW 2016; McAuley et al., Image-Based Recommendations on Styles and "
    "Substitutes, SIGIR 2015"
)
_COMMENT = """\
{title} as click prediction: which item does a user review next?

Each item of a user from the third on is a positive, seen with the user's earlier items, the newest
{length}. Negatives are drawn evenly from the items that are nowhere in the user's sequence.
{negatives}

The user's last item is the test split, the one before it the validation split. GAUC groups by user.
The user is no feature, for a user has few rows: the history stands for the user."""
_SEQUENCES_COMMENT = """\
{title} as sequences: which item of the whole catalogue does a user review next?

Item numbers are those of the published lists. Dates are days: items of one day stand as the lists
have them, and other versions of this data set order them otherwise."""
_ONE = "Each positive has one."
_MORE = f"""\
A training positive has one, a held-out one {HELD_OUT_NEGATIVES}: against a single one, the AUC of a
user is 0, 1/2 or 1. Training rows are those of schema.toml but for their draw."""


def _schemas(name: str, title: str, *, brand: bool) -> Mapping[str, SchemaText]:
    def comment(negatives: str) -> str:
        return _COMMENT.format(title=title, length=HISTORY_LENGTH, negatives=negatives)

    plain = _values(name, brand=brand)
    several = _values(f"{name}-gauc", brand=brand)
    several["negatives"]["per_held_out"] = HELD_OUT_NEGATIVES
    return {
        "schema": SchemaText(plain, comment(_ONE)),
        "schema-gauc": SchemaText(several, comment(_MORE)),
    }


def _sequences(name: str, title: str, text: Sequence[str], *, brand: bool) -> SequencesText:
    values: dict[str, Any] = {
        "name": name,
        "interactions": {
            "files": "interactions.parquet",
            "user": "user_id",
            "item": "item_id",
            "time": "order",
        },
        "items": {
            "files": "items.parquet",
            "id": "item_id",
            "title": text[0],
            "text": list(text),
            "attributes": list(_side_fields(brand=brand)),
        },
    }
    return SequencesText(values, _SEQUENCES_COMMENT.format(title=title))


def _side_fields(*, brand: bool) -> tuple[str, ...]:
    return ("department", "category", *(("brand",) if brand else ()))


def _values(name: str, *, brand: bool) -> dict[str, Any]:
    return {
        "name": name,
        "input": {"files": "interactions.parquet"},
        "features": {"item_id": {"kind": "categorical"}},
        "labels": {"bought": {}},
        "roles": {"group": "user_id", "time": "order"},
        "entities": {
            "item": {
                "input": {"files": "items.parquet"},
                "key": "item_id",
                "feature": "item_id",
                "features": {field: {"kind": "categorical"} for field in _side_fields(brand=brand)},
            }
        },
        "history": [
            {
                "name": "history",
                "user": "user_id",
                "time": "order",
                "members": ["item_id"],
                "max_length": HISTORY_LENGTH,
                "min_length": FIRST_HISTORY,
            }
        ],
        "negatives": {"user": "user_id", "item": "item_id", "label": "bought", "seed": SEED},
        "split": {"kind": "leave_one_out", "user": "user_id", "time": "order"},
    }


def _from_parquet(files: Files, into: Path) -> None:
    sequences = pl.read_parquet(files["sequences.parquet"], columns=["user_id", "items"])
    items = pl.read_parquet(files["items.parquet"])
    interactions = reviews_in_order(sequences, items)
    interactions.write_parquet(into / "interactions.parquet")
    with_side_fields(items).write_parquet(into / "items.parquet")


def reviews_in_order(sequences: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Rows of `user_id`, `item_id` and `order`, the item's place in its user's sequence.

    Args:
        sequences: columns `user_id`, `items`.
        items: column `item_id`.

    Raises:
        ValueError: a user has an item twice, or `items` lacks one.
    """
    interactions = (
        sequences.with_columns(pl.int_ranges(pl.col("items").list.len()).alias("order"))
        .explode("items", "order")
        .rename({"items": "item_id"})
        .select(pl.col("user_id", "item_id", "order").cast(pl.Int64))
    )
    double = interactions.filter(interactions.select("user_id", "item_id").is_duplicated())
    if double.height:
        raise ValueError(
            f"a user's items must differ; user {double['user_id'][0]} has item "
            f"{double['item_id'][0]} twice"
        )
    known = items.select(pl.col("item_id").cast(pl.Int64))
    unknown = interactions.select("item_id").unique().join(known, on="item_id", how="anti")
    if unknown.height:
        raise ValueError(
            f"items.parquet lacks {unknown.height:,} of the sequences' items, such as "
            f"{unknown['item_id'].sort()[0]}"
        )
    return interactions


def with_side_fields(items: pl.DataFrame) -> pl.DataFrame:
    """The items with `department` and `category`: first and last step of their first path."""
    return items.with_columns(
        pl.col("item_id").cast(pl.Int64),
        _path(items).list.first().alias("department"),
        _path(items).list.last().alias("category"),
    )


def _path(items: pl.DataFrame) -> pl.Expr:
    """Categories of an item from the general to the special: its first path, without the root.

    Sports has no paths, only the categories of all paths in a row, and no root among them.
    """
    if "category_path" not in items.columns:
        return pl.col("categories")
    return pl.col("category_path").list.first().str.split(" > ").list.slice(1)


def _source(
    name: str,
    title: str,
    rows: str,
    sums: tuple[str, str],
    *,
    text: Sequence[str],
    brand: bool = True,
) -> Source:
    sequences, items = sums
    return Source(
        name=name,
        title=f"{title} (2014, 5-core)",
        rows=rows,
        task="next item against a drawn one; a user's last item is the test split",
        terms=_TERMS,
        citation=_CITATION,
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        forms=(
            Form(
                name="Parquet tables",
                files={"sequences.parquet": sequences, "items.parquet": items},
                convert=_from_parquet,
                schemas=partial(_schemas, name, title, brand=brand),
                sequences=partial(_sequences, name, title, text, brand=brand),
            ),
        ),
        how_to_get=(
            "make sequences.parquet (user_id, items: item numbers, oldest first) of S3-Rec's "
            "sequence file (https://github.com/RUCAIBox/CIKM2020-S3Rec, folder data) and "
            "items.parquet (item_id, categories or category_path, brand; for sequences, "
            f"{text[0]}) of the reviews' metadata, then give --from FOLDER --no-verify"
        ),
    )


AMAZON_BEAUTY = _source(
    "amazon-beauty",
    "Amazon Beauty",
    "198,502 reviews",
    (
        "359d4f75b9f51e79ed45413eb1a2308150f8823984901cbb683dd43158b8cd57",
        "bf88254893e0239b23c6c7755104146d12a1f4799bdb561e0908f51329c8ecfb",
    ),
    text=("title", "brand", "category_path"),
)
"""The data set."""

AMAZON_TOYS = _source(
    "amazon-toys",
    "Amazon Toys and Games",
    "167,597 reviews",
    (
        "65e2e82b4e319c5c3996c7e59865b4d5efee611899114d4bf2c09bf92d5320a3",
        "fcd60431aec02118dd4861fa8c8bf75dcff3de5fd27b28e76be08e527fba97aa",
    ),
    text=("title", "category_path"),
    brand=False,
)
"""The data set."""

AMAZON_SPORTS = _source(
    "amazon-sports",
    "Amazon Sports and Outdoors",
    "296,337 reviews",
    (
        "1e2dadc82cafdbc5ffe8e1967d1ae62ff49fc3765114b843fd59fe288678c510",
        "935f6cf1d58f04329ae057ccb21629b7047eeae15819ed85456c6cd2437196c2",
    ),
    # Full titles are not in it.
    text=("keywords", "brand", "categories"),
)
"""The data set."""
