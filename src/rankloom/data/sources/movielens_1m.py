"""MovieLens-1M: 1,000,209 ratings of 3,706 films by 6,040 users.

Read from GroupLens's files (with timestamps) and from Parquet tables, which hold each rating's
place in its user's time order instead. `order` is therefore the column that both forms share; with
timestamps there are as many schemas more, whose names end in `-timestamp`; they have hour and
weekday as well.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from rankloom.data.sources.movielens import (
    CITATION,
    COMMENT,
    RATED,
    TERMS,
    click_schema,
    read_text,
    write_tables,
)
from rankloom.data.sources.source import (
    Download,
    Files,
    Form,
    SchemaText,
    SequencesText,
    Source,
)

HISTORY_LENGTH = 50
"""Earlier films kept per row."""
RATED_HISTORY_LENGTH = 30
"""Earlier films kept per row where each comes with its rating."""
SAMPLE_SHARE = 0.2
"""Share of the users in the small set."""
Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]
"""Ratings, films and users as `write_tables` takes them."""
SAMPLED = f"""
About a share of {SAMPLE_SHARE} of the users, all of their ratings: for experiments of many runs."""

_SEQUENCES_COMMENT = """\
MovieLens-1M as sequences: which film, of all that anyone rated, does a user rate next?

Every rating counts, whatever its value. Of a film's genres, the first in the alphabet is the
attribute."""


def _schemas() -> Mapping[str, SchemaText]:
    comment = COMMENT.format(title="MovieLens-1M", order="the rating's place in its user's order")
    return _variants("", "order", comment, clock=False)


def _schemas_with_time() -> Mapping[str, SchemaText]:
    comment = COMMENT.format(title="MovieLens-1M", order="the time of the rating, in seconds")
    return {**_schemas(), **_variants("-timestamp", "timestamp", comment, clock=True)}


def _sequences() -> SequencesText:
    values = {
        "name": "movielens-1m",
        "interactions": {
            "files": "ratings.parquet",
            "user": "user_id",
            "item": "item_id",
            "time": "order",
        },
        "items": {
            "files": "movies.parquet",
            "id": "item_id",
            "title": "title",
            "text": ["title", "release_year", "genres"],
            "attributes": ["release_year", "genres"],
            "only_seen": True,
        },
    }
    return SequencesText(values, _SEQUENCES_COMMENT)


def _variants(ending: str, time: str, comment: str, *, clock: bool) -> dict[str, SchemaText]:
    """Earlier films alone; films with their ratings; the same of a sample of users."""
    name = f"movielens-1m{ending}"
    plain = click_schema(name, time, clock=clock, history_length=HISTORY_LENGTH)
    name = f"movielens-1m-ctr{ending}"
    rated = click_schema(name, time, clock=clock, history_length=RATED_HISTORY_LENGTH, rated=True)
    sample = {"column": "user_id", "share": SAMPLE_SHARE}
    sampled = rated | {"name": f"movielens-1m-sample{ending}", "sample": sample}
    return {
        f"schema{ending}": SchemaText(plain, comment),
        f"schema-ctr{ending}": SchemaText(rated, comment + RATED),
        f"schema-sample{ending}": SchemaText(sampled, comment + RATED + SAMPLED),
    }


def read_grouplens(files: Files) -> Tables:
    """Ratings (with timestamp and order), films and users from GroupLens's files."""
    columns = ["user_id", "item_id", "rating", "timestamp"]
    ratings = read_text(files["ratings.dat"], "::", columns).with_columns(pl.all().cast(pl.Int64))
    # Ratings of one second keep their order in the file.
    ratings = ratings.sort("user_id", "timestamp", maintain_order=True).with_columns(
        pl.int_range(pl.len()).over("user_id").alias("order")
    )
    movies = read_text(files["movies.dat"], "::", ["item_id", "title", "genres"]).with_columns(
        pl.col("genres").str.split("|")
    )
    users = read_text(
        files["users.dat"], "::", ["user_id", "gender", "age", "occupation", "zip_code"]
    )
    return ratings, movies, users


def read_parquet(files: Files) -> Tables:
    """Ratings (with order), films and users from Parquet tables."""
    ratings = pl.read_parquet(files["ratings.parquet"]).rename({"movie_id": "item_id"})
    movies = pl.read_parquet(files["movies.parquet"]).rename({"movie_id": "item_id"})
    users = pl.read_parquet(files["users.parquet"]).rename({"zip": "zip_code"})
    return ratings, movies, users.with_columns(pl.col("occupation").cast(pl.String))


def _from_grouplens(files: Files, into: Path) -> None:
    write_tables(into, *read_grouplens(files))


def _from_parquet(files: Files, into: Path) -> None:
    write_tables(into, *read_parquet(files))


MOVIELENS_1M = Source(
    name="movielens-1m",
    title="MovieLens-1M",
    rows="1,000,209 ratings",
    task="rating of 4 or 5; last tenth of each user's ratings is the test split",
    terms=TERMS,
    citation=CITATION,
    page="https://grouplens.org/datasets/movielens/1m/",
    forms=(
        Form(
            name="GroupLens files",
            files={"ratings.dat": None, "movies.dat": None, "users.dat": None},
            convert=_from_grouplens,
            schemas=_schemas_with_time,
            sequences=_sequences,
        ),
        Form(
            name="Parquet tables",
            files={
                "ratings.parquet": (
                    "4b0a06756fad540a2cf1a69bf8338fcc7d612dd26ca51d973a716d90bacd44db"
                ),
                "movies.parquet": (
                    "49f562cf15d9f6d18a2506a4177144de4a0f5e0462026a0a18e9d33152f19942"
                ),
                "users.parquet": (
                    "fa7cb2c36ad7f2bd652fcbd0998306c19ecfe6d5869f08ffbe6dd876dc6e4525"
                ),
            },
            convert=_from_parquet,
            schemas=_schemas,
            sequences=_sequences,
        ),
    ),
    origins=(
        Download(
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
    ),
)
"""The data set."""
