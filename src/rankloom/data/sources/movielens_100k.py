"""MovieLens-100K: 100,000 ratings of 1,682 films by 943 users, with timestamps.

Read from GroupLens's files, from the RecBole atomic files that the wheel `recbole` carries, and
from Parquet tables. All three give the same tables.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from rankloom.data.sources.movielens import (
    CITATION,
    COMMENT,
    TERMS,
    click_schema,
    read_text,
    write_tables,
)
from rankloom.data.sources.source import Download, Files, Form, SchemaText, Source, Wheel

HISTORY_LENGTH = 20
"""Earlier films kept per row, for the sake of the demo's time: 50 cost about twice as much."""
_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
"""Genres in the order of the flags of `u.item`."""


def _schemas() -> Mapping[str, SchemaText]:
    comment = COMMENT.format(title="MovieLens-100K", order="the time of the rating, in seconds")
    values = click_schema("movielens-100k", "timestamp", clock=True, history_length=HISTORY_LENGTH)
    return {"schema": SchemaText(values, comment)}


def _from_grouplens(files: Files, into: Path) -> None:
    ratings = read_text(files["u.data"], "\t", ["user_id", "item_id", "rating", "timestamp"])
    columns = ["item_id", "title", "date", "video_date", "url", *_GENRES]
    items = read_text(files["u.item"], "|", columns)
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
    movies = items.select(
        "item_id", "title", pl.concat_list(flags).list.drop_nulls().alias("genres")
    )
    users = read_text(files["u.user"], "|", ["user_id", "age", "gender", "occupation", "zip_code"])
    write_tables(into, ratings, movies, users)


def _from_atomic(files: Files, into: Path) -> None:
    ratings = _read_atomic(files["ml-100k.inter"])
    movies = _read_atomic(files["ml-100k.item"]).select(
        "item_id",
        pl.col("movie_title").alias("title"),
        "release_year",
        pl.col("class").str.split(" ").alias("genres"),
    )
    write_tables(into, ratings, movies, _read_atomic(files["ml-100k.user"]))


def _from_parquet(files: Files, into: Path) -> None:
    movies = pl.read_parquet(files["movies.parquet"]).rename({"movie_title": "title"})
    ratings = pl.read_parquet(files["ratings.parquet"])
    write_tables(into, ratings, movies, pl.read_parquet(files["users.parquet"]))


def _read_atomic(path: Path) -> pl.DataFrame:
    """A RecBole atomic file: tab-separated text whose header gives `name:type`."""
    frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    return frame.rename({column: column.partition(":")[0] for column in frame.columns})


MOVIELENS_100K = Source(
    name="movielens-100k",
    title="MovieLens-100K",
    rows="100,000 ratings",
    task="rating of 4 or 5; last tenth of each user's ratings is the test split",
    terms=TERMS,
    citation=CITATION,
    page="https://grouplens.org/datasets/movielens/100k/",
    forms=(
        Form(
            name="GroupLens files",
            files={
                "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
            },
            convert=_from_grouplens,
            schemas=_schemas,
        ),
        Form(
            name="RecBole atomic files",
            files={
                "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
            },
            convert=_from_atomic,
            schemas=_schemas,
        ),
        Form(
            name="Parquet tables",
            files={
                "ratings.parquet": (
                    "9b00d562cc15f203217816cef4de426f2d30fead3dc9b1f6e158e8dbd98cba62"
                ),
                "movies.parquet": (
                    "69ebd4eab39aa9a3c71fb6ca2b5a20ca26bd9864b2c49fdfb3a16be9212bf523"
                ),
                "users.parquet": (
                    "e53c4992303708247dcb28ea3ddf5082ea928901a8529e5f08de904e2e4b3340"
                ),
            },
            convert=_from_parquet,
            schemas=_schemas,
        ),
    ),
    origins=(
        Download(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
        Wheel(
            "recbole==1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
    ),
)
"""The data set."""
