"""What the MovieLens sets have in common: normal form, terms, and the click-prediction schema.

Normal form: `ratings.parquet` (user_id, item_id, rating, the same as `stars`, and the column that
orders a user's ratings), `movies.parquet` (item_id, title, release_year, genres) and
`users.parquet` (user_id, gender, age, occupation, zip_code); numbers are Int64, genres a sorted
list.
"""

from pathlib import Path
from typing import Any

import polars as pl

TERMS = (
    "research use with acknowledgement; no commercial use and no redistribution without "
    "permission of GroupLens"
)
CITATION = (
    "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, "
    "doi:10.1145/2827872"
)
_YEAR_IN_TITLE = r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$"
MAX_GENRES = 6
"""Most genres that a film of either set has."""


def write_tables(
    into: Path, ratings: pl.DataFrame, movies: pl.DataFrame, users: pl.DataFrame
) -> None:
    """Write the three tables in the normal form.

    Args:
        into: folder.
        ratings: user_id, item_id, rating, and further integer columns. The rating is written a
            second time as `stars`, for histories: as the label's column it is a number, and an
            earlier film's rating is better one of five values.
        movies: item_id, title, genres (list); release_year (text or number) where the form has it.
        users: user_id, gender, age, occupation, zip_code.
    """
    _integers(ratings, ratings.columns).with_columns(pl.col("rating").alias("stars")).write_parquet(
        into / "ratings.parquet"
    )
    from_title = pl.col("title").str.extract(_YEAR_IN_TITLE)
    year = from_title
    if "release_year" in movies.columns:
        # The source writes "V" (for video) or other text where its own parsing failed.
        own = pl.col("release_year").cast(pl.String).str.extract(r"^(\d{4})$")
        year = pl.coalesce(own, from_title)
    movies.select(
        pl.col("item_id").cast(pl.Int64),
        pl.col("title").str.replace(_YEAR_IN_TITLE, "").str.strip_chars(),
        year.cast(pl.Int64).alias("release_year"),
        pl.col("genres").list.sort(),
    ).write_parquet(into / "movies.parquet")
    _integers(users, ["user_id", "age"]).select(
        "user_id", "gender", "age", "occupation", "zip_code"
    ).write_parquet(into / "users.parquet")


def read_text(path: Path, separator: str, columns: list[str]) -> pl.DataFrame:
    """Read a GroupLens file (Latin-1, no header, no quotes) as text columns."""
    data = path.read_bytes().replace(separator.encode(), b"\t").decode("latin-1")
    return pl.read_csv(
        data.encode(),
        separator="\t",
        has_header=False,
        new_columns=columns,
        quote_char=None,
        infer_schema=False,
    )


def click_schema(
    name: str, time: str, *, clock: bool, history_length: int, rated: bool = False
) -> dict[str, Any]:
    """The schema of a MovieLens set as click prediction.

    Args:
        name: name of the data set.
        time: column that orders a user's ratings.
        clock: whether `time` is in Unix seconds, so that hour and weekday can be had.
        history_length: earlier films kept per row, the newest.
        rated: whether an earlier film comes with its rating (`stars`) and, with a clock, its time.

    Returns:
        Plain values of a `TableSchema`.
    """
    features: dict[str, Any] = {
        "user_id": {"kind": "categorical"},
        "item_id": {"kind": "categorical"},
    }
    schema: dict[str, Any] = {"name": name, "input": {"files": "ratings.parquet"}}
    if clock:
        schema["derive"] = [
            {"name": kind, "source": time, "kind": kind, "format": "unix"}
            for kind in ("hour", "weekday")
        ]
        features |= {kind: {"kind": "categorical"} for kind in ("hour", "weekday")}
    schema["features"] = features
    schema["labels"] = {"liked": {"column": "rating", "threshold": 4.0}}
    schema["roles"] = {"group": "user_id", "time": time}
    schema["entities"] = {
        "user": {
            "input": {"files": "users.parquet"},
            "key": "user_id",
            "feature": "user_id",
            "features": {
                "gender": {"kind": "categorical"},
                "age": {"kind": "categorical"},
                "occupation": {"kind": "categorical"},
                "zip_code": {"kind": "categorical", "min_count": 2},
            },
        },
        "item": {
            "input": {"files": "movies.parquet"},
            "key": "item_id",
            "feature": "item_id",
            "features": {
                "genres": {"kind": "sequence", "max_length": MAX_GENRES},
                "release_year": {"kind": "categorical"},
            },
        },
    }
    schema["history"] = [
        {
            "name": "history",
            "user": "user_id",
            "time": time,
            "members": ["item_id", "stars"] if rated else ["item_id"],
            "max_length": history_length,
        }
    ]
    if rated and clock:
        schema["history"][0]["with_time"] = True
    schema["split"] = {
        "kind": "time",
        "column": time,
        "within": "user_id",
        "valid": 0.1,
        "test": 0.1,
    }
    return schema


COMMENT = """\
{title} as click prediction: is a film rated 4 or 5?

Split inside each user's own time order: the last tenth is the test split, the tenth before it the
validation split. A row sees the user's earlier films, whatever their rating, and never its own.
Order: {order}."""
RATED = """
An earlier film comes with its rating, its genres and its year."""


def _integers(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    return frame.with_columns(pl.col(columns).cast(pl.Int64))
