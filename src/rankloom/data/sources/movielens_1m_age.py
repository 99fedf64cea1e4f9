"""MovieLens-1M by age group: three scenarios, as Scenario-Wise-Rec defines them.

The benchmark (Li et al., arXiv:2412.17374; its script for MovieLens) makes a scenario of each of
three groups of users, calls a rating above 3 a click, takes a film's first genre as its category
and splits the ratings at random, 8:1:1.

Differs from the benchmark: it draws another split for every seed, here one draw serves all; it
numbers the ids of all rows, here a value that training lacks is out of vocabulary.
The benchmark leaves open whether the scenario is a field as well: its script has two versions of
the same function, and the second, which counts, leaves it out. Here it is a field, so that a model
without parts for scenarios sees it. Age, which decides the scenario, is a field in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from rankloom.data.sources.movielens_1m import MOVIELENS_1M, Tables, read_grouplens, read_parquet
from rankloom.data.sources.source import Files, SchemaText, no_sequences

AGE_GROUPS = {"0-24": (1, 18), "25-34": (25,), "35+": (35, 45, 50, 56)}
"""Scenario -> the age codes of its users. A code is the lowest age of a bracket, 1 is below 18."""
SEED = 2022
"""Seed of the split; the one that the benchmark's scripts have by default."""

_COMMENT = f"""\
MovieLens-1M by age group, as Scenario-Wise-Rec defines it: is a film rated 4 or 5?

Scenarios: users below 25, from 25 to 34, and from 35 on. The scenario is a field too (age_group),
so that a model without parts for scenarios sees it; the benchmark has it as the scenario alone,
beside the age that decides it.

Fields are the benchmark's: age is a number scaled to [0, 1], all others are ids, the genre is the
first of the film's. Every value of the training split is kept.

Split: every rating by itself, 8:1:1, as in the benchmark; the seed ({SEED}) is stated here, and the
draw is this library's. Rows are in the order of user and film, so every form of the data set gives
the same split. A user's later ratings are among the training rows of earlier ones: compare these
results with others of this protocol, not with those of a split by time. GAUC groups by user."""


def _schemas() -> Mapping[str, SchemaText]:
    ids = ("user_id", "item_id", "gender", "occupation", "zip_code", "genre", "age_group")
    values = {
        "name": "movielens-1m-age",
        "input": {"files": "ratings.parquet"},
        "features": {name: {"kind": "categorical"} for name in ids}
        | {"age": {"kind": "numeric", "transform": "min_max"}},
        "labels": {"liked": {"column": "rating", "threshold": 4.0}},
        "roles": {"scenario": "age_group", "group": "user_id"},
        "split": {"kind": "random", "valid": 0.1, "test": 0.1, "seed": SEED},
    }
    return {"schema": SchemaText(values, _COMMENT)}


def _convert(read: Callable[[Files], Tables], files: Files, into: Path) -> None:
    ratings, movies, users = read(files)
    rows = (
        ratings.select(pl.col("user_id", "item_id", "rating").cast(pl.Int64))
        .sort("user_id", "item_id")
        .join(_users(users), on="user_id", how="left", maintain_order="left")
        .join(_movies(movies), on="item_id", how="left", maintain_order="left")
    )
    for column, key, table in (("age_group", "user_id", "users"), ("genre", "item_id", "movies")):
        unknown = rows.filter(pl.col(column).is_null())
        if unknown.height:
            raise ValueError(
                f"{unknown.height:,} ratings have no {column}: the table of {table} has none for "
                f"{key} {unknown[key][0]}"
            )
    rows.write_parquet(into / "ratings.parquet")


def _users(users: pl.DataFrame) -> pl.DataFrame:
    age = pl.col("age").cast(pl.Int64)
    group_of = {code: name for name, codes in AGE_GROUPS.items() for code in codes}
    wrong = users.filter(~age.is_in(list(group_of)))
    if wrong.height:
        codes = ", ".join(map(str, group_of))
        raise ValueError(f"age must be one of the codes {codes}; got {wrong['age'][0]}")
    return users.select(
        pl.col("user_id").cast(pl.Int64),
        "gender",
        age,
        "occupation",
        "zip_code",
        age.replace_strict(group_of, return_dtype=pl.String).alias("age_group"),
    )


def _movies(movies: pl.DataFrame) -> pl.DataFrame:
    return movies.select(
        pl.col("item_id").cast(pl.Int64), pl.col("genres").list.first().alias("genre")
    )


_GROUPLENS, _PARQUET = MOVIELENS_1M.forms

MOVIELENS_1M_AGE = replace(
    MOVIELENS_1M,
    name="movielens-1m-age",
    title="MovieLens-1M by age group",
    task="rating of 4 or 5 in three scenarios (age groups of users); random split 8:1:1",
    citation=(
        f"{MOVIELENS_1M.citation}; for the protocol: Li et al., Scenario-Wise Rec: A "
        "Multi-Scenario Recommendation Benchmark, arXiv:2412.17374"
    ),
    forms=(
        replace(
            _GROUPLENS,
            convert=partial(_convert, read_grouplens),
            schemas=_schemas,
            sequences=no_sequences,
        ),
        replace(
            _PARQUET,
            convert=partial(_convert, read_parquet),
            schemas=_schemas,
            sequences=no_sequences,
        ),
    ),
)
"""The data set."""
