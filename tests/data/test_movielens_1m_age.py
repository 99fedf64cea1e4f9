"""MovieLens-1M with a scenario for each group of ages."""

import math
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from rankloom.data.encode import Encoder
from rankloom.data.prepare import prepare
from rankloom.data.sources import get
from rankloom.data.sources.movielens_1m_age import AGE_GROUPS

AGES = (1, 18, 25, 35, 45, 50, 56)


def write_grouplens(folder: Path, films: int = 40) -> Path:
    """A user of each age code who rates every film, from the last one to the first."""
    folder.mkdir()
    ratings = [
        f"{user}::{film}::{(user + film) % 5 + 1}::{100 - film}"
        for user, _ in enumerate(AGES, start=1)
        for film in range(films, 0, -1)
    ]
    # The first genre is the one listed first, not the first in the alphabet.
    movies = [
        f"{film}::Film {film} (1990)::{'War|Action' if film % 2 else 'Comedy'}"
        for film in range(1, films + 1)
    ]
    users = [f"{user}::F::{age}::{user}::0000{user}" for user, age in enumerate(AGES, start=1)]
    for name, lines in (("ratings", ratings), ("movies", movies), ("users", users)):
        (folder / f"{name}.dat").write_text("\n".join(lines) + "\n")
    return folder


def as_parquet(place: Path, folder: Path) -> Path:
    """The same as Parquet tables, the ratings in the opposite order."""
    folder.mkdir()

    def read(name: str, columns: list[str]) -> pl.DataFrame:
        rows = [line.split("::") for line in (place / f"{name}.dat").read_text().splitlines()]
        return pl.DataFrame(rows, schema=columns, orient="row")

    numbers = pl.col("user_id", "movie_id", "rating", "order").cast(pl.Int16)
    read("ratings", ["user_id", "movie_id", "rating", "order"]).select(
        numbers
    ).reverse().write_parquet(folder / "ratings.parquet")
    read("movies", ["movie_id", "title", "genres"]).with_columns(
        pl.col("movie_id").cast(pl.Int16), pl.col("genres").str.split("|")
    ).write_parquet(folder / "movies.parquet")
    read("users", ["user_id", "gender", "age", "occupation", "zip"]).with_columns(
        pl.col("user_id", "age", "occupation").cast(pl.Int8)
    ).write_parquet(folder / "users.parquet")
    return folder


def take(place: Path, out: Path) -> Path:
    return get("movielens-1m-age", origin=place, out=out, verify=False)


def test_the_rows_by_hand(tmp_path: Path) -> None:
    raw = take(write_grouplens(tmp_path / "from"), tmp_path / "out")
    rows = pl.read_parquet(raw / "ratings.parquet")
    pairs = rows.select("user_id", "item_id").rows()
    assert pairs == [(user, film) for user in range(1, 8) for film in range(1, 41)]
    assert rows["genre"].to_list() == ["War", "Comedy"] * 140
    groups = ["0-24", "0-24", "25-34", "35+", "35+", "35+", "35+"]
    assert rows["age_group"].to_list() == [group for group in groups for _ in range(40)]
    assert rows["age"].to_list() == [age for age in AGES for _ in range(40)]
    assert rows.row(41, named=True) == {
        "user_id": 2,
        "item_id": 2,
        "rating": 5,
        "gender": "F",
        "age": 18,
        "occupation": "2",
        "zip_code": "00002",
        "age_group": "0-24",
        "genre": "Comedy",
    }


def test_both_forms_give_the_same_rows_and_so_the_same_split(tmp_path: Path) -> None:
    text = write_grouplens(tmp_path / "text")
    folders = [
        take(place, tmp_path / f"out of {place.name}")
        for place in (text, as_parquet(text, tmp_path / "tables"))
    ]
    first, second = (pl.read_parquet(folder / "ratings.parquet") for folder in folders)
    assert first.equals(second)
    assert first.schema == second.schema
    texts = [(folder / "schema.toml").read_text() for folder in folders]
    assert texts[0] == texts[1]


def test_the_scenario_is_a_field_as_well(tmp_path: Path) -> None:
    raw = take(write_grouplens(tmp_path / "from"), tmp_path / "out")
    dataset = prepare(raw / "schema.toml", tmp_path / "prepared")
    assert dataset.schema.scenarios == ("<unknown>", "0-24", "25-34", "35+")
    names = [field.name for field in dataset.schema.categorical]
    field = names.index("age_group")
    known = pl.read_parquet(dataset.folder / "vocabulary" / "age_group.parquet")
    value = dict(zip(known["index"], known["value"], strict=True))
    sizes = []
    for split in ("train", "valid", "test"):
        batch = dataset.split(split).slice(0, dataset.split(split).rows)
        assert batch.scenario is not None
        by_role = [dataset.schema.scenarios[index] for index in batch.scenario.tolist()]
        assert [value[index] for index in batch.categorical[:, field].tolist()] == by_role
        # Age is scaled: 1 becomes 0, 25 is at 24 / 55, and 56 becomes 1.
        ages = dict(zip(by_role, batch.numeric[:, 0].tolist(), strict=True))
        assert ages["25-34"] == pytest.approx(24 / 55)
        sizes.append(len(by_role))
    assert sum(sizes) == 280
    # Each row is drawn by itself: the sizes are binomial, with 8:1:1 as the shares.
    for size, share in zip(sizes, (0.8, 0.1, 0.1), strict=True):
        assert abs(size - 280 * share) < 4 * math.sqrt(280 * share * (1 - share))


def test_a_rating_above_three_is_positive(tmp_path: Path) -> None:
    raw = take(write_grouplens(tmp_path / "from"), tmp_path / "out")
    dataset = prepare(raw / "schema.toml", tmp_path / "prepared")
    stored = [dataset.split(name) for name in dataset.splits]
    positive = sum(split.slice(0, split.rows).labels.sum().item() for split in stored)
    ratings = pl.read_parquet(raw / "ratings.parquet")["rating"]
    assert positive == (ratings > 3).sum() == 112


def test_an_unknown_scenario_is_unknown_in_both_places(tmp_path: Path) -> None:
    raw = take(write_grouplens(tmp_path / "from"), tmp_path / "out")
    dataset = prepare(raw / "schema.toml", tmp_path / "prepared")
    row = pl.read_parquet(raw / "ratings.parquet").head(2)
    request = row.with_columns(pl.Series("age_group", ["0-24", "100+"]))
    columns = Encoder.load(dataset.folder).encode(request.drop("rating"))
    assert columns.scenario is not None
    assert columns.scenario.tolist() == [1, 0]
    field = [one.name for one in dataset.schema.categorical].index("age_group")
    assert columns.categorical[1, field] == 1
    assert columns.categorical[0, field] > 1


def test_the_groups_are_the_codes_in_order_each_once() -> None:
    codes = [code for group in AGE_GROUPS.values() for code in group]
    assert tuple(codes) == AGES
    assert all(first < second for first, second in pairwise(AGE_GROUPS))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("users.dat", "3::F::25", "3::F::26", r"age must be one of the codes 1, .*; got 26"),
        ("movies.dat", "7::Film", "77::Film", r"7 ratings have no genre: .*movies.* item_id 7$"),
        ("users.dat", "4::F", "44::F", r"40 ratings have no age_group: .*users.* user_id 4$"),
    ],
)
def test_tables_that_do_not_fit_are_one_sentence(
    file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    place = write_grouplens(tmp_path / "from")
    lines = (place / file).read_text().splitlines()
    changed = [new + line.removeprefix(old) if line.startswith(old) else line for line in lines]
    assert changed != lines
    (place / file).write_text("\n".join(changed) + "\n")
    with pytest.raises(ValueError, match=message):
        take(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.data
def test_the_scenarios_have_the_sizes_that_the_benchmark_states(
    public_data: Path, tmp_path: Path
) -> None:
    raw = get("movielens-1m-age", origin=public_data / "movielens-1m", out=tmp_path)
    rows = pl.read_parquet(raw / "ratings.parquet")
    sizes = rows.group_by("age_group").agg(
        pl.len(), pl.col("user_id").n_unique(), pl.col("item_id").n_unique()
    )
    # Ratings, users and films, as Scenario-Wise-Rec gives them.
    assert sizes.sort("age_group").rows() == [
        ("0-24", 210_747, 1_325, 3_429),
        ("25-34", 395_556, 2_096, 3_508),
        ("35+", 393_906, 2_619, 3_595),
    ]
