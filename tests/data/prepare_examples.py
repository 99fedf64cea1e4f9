"""A small log with every kind of feature, for the tests of prepare and encode."""

from pathlib import Path

import numpy as np
import polars as pl

from rankloom.data.table_schema import (
    Categorical,
    ColumnSplit,
    Derive,
    Entity,
    GroupMember,
    History,
    LabelSpec,
    Numeric,
    Roles,
    Sequence,
    SequenceGroupSpec,
    TableInput,
    TableSchema,
    Text,
    Vector,
)


def rich_frame(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def some(values: list[object], missing: float = 0.1) -> list[object]:
        return [None if rng.random() < missing else value for value in values]

    tags = ["red", "green", "blue", "grey"]
    lengths = rng.integers(0, 6, rows)
    return pl.DataFrame(
        {
            "user": rng.integers(1, 30, rows),
            "item": [f"i{value}" for value in rng.zipf(1.5, rows) % 60],
            "city": some([f"c{value}" for value in rng.integers(0, 9, rows)]),
            "big": rng.integers(2**60, 2**60 + 5, rows),
            "price": some(rng.normal(10, 3, rows).round(3).tolist()),
            "age": some(rng.integers(10, 70, rows).tolist()),
            "tags": [
                "|".join(rng.choice(tags, rng.integers(0, 4), replace=False)) for _ in range(rows)
            ],
            "seen": ["|".join(f"i{v}" for v in rng.integers(0, 70, n)) for n in lengths],
            "seen_price": ["|".join(str(v) for v in rng.normal(0, 1, n).round(2)) for n in lengths],
            "seen_at": ["|".join(str(v) for v in sorted(rng.integers(0, 99, n))) for n in lengths],
            "vector": [" ".join(map(str, rng.normal(0, 1, 3).round(3))) for _ in range(rows)],
            "title": [f"title {value}" for value in rng.integers(0, 99, rows)],
            "time": 1_600_000_000 + 3600 * np.arange(rows),
            "click": rng.integers(0, 2, rows),
            "buy": some(rng.integers(0, 2, rows).tolist(), 0.3),
            "stars": rng.integers(1, 6, rows),
            "country": rng.choice(["de", "fr", "it"], rows),
            "weight": rng.random(rows).round(3),
            "fold": np.repeat(["train", "valid", "test"], [rows - rows // 4 * 2, *2 * [rows // 4]]),
        }
    )


def item_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"i{value}" for value in range(50)],
            "brand": [f"b{value % 7}" for value in range(50)],
            "genres": ["|".join(f"g{k}" for k in range(value % 4)) for value in range(50)],
            "cost": [float(value) for value in range(50)],
            "embedding": [f"{value},{-value}" for value in range(50)],
        }
    )


def rich_schema() -> TableSchema:
    return TableSchema(
        name="rich",
        input=TableInput(files="log.csv"),
        features={
            "user": Categorical(),
            "item": Categorical(min_count=2),
            "city": Categorical(max_values=5),
            "hashed": Categorical(column="city", hash_buckets=6),
            "big": Categorical(),
            "age_bin": Categorical(column="age", transform="quantile", bins=4),
            "age_ln": Categorical(column="age", transform="criteo_ln2"),
            "hour": Categorical(),
            "price": Numeric(transform="standardise", fill="mean"),
            "age": Numeric(transform="min_max", fill="median"),
            "tags": Sequence(max_length=2),
            "vector": Vector(width=3),
            "title": Text(),
        },
        labels={
            "click": LabelSpec(),
            "buy": LabelSpec(allow_missing=True),
            "liked": LabelSpec(column="stars", threshold=4),
        },
        roles=Roles(scenario="country", group="user", time="time", weight="weight"),
        sequence_groups={
            "events": SequenceGroupSpec(
                members={
                    "item": GroupMember(column="seen", vocabulary="item"),
                    "price": GroupMember(column="seen_price", kind="numeric"),
                    "time": GroupMember(column="seen_at", kind="time"),
                },
                max_length=3,
            )
        },
        entities={
            "item_info": Entity(
                input=TableInput(files="items.csv"),
                key="id",
                feature="item",
                features={
                    "brand": Categorical(),
                    "genres": Sequence(max_length=3),
                    "cost": Numeric(transform="log"),
                    "embedding": Vector(width=2),
                },
            )
        },
        derive=(Derive(name="hour", source="time", kind="hour"),),
        history=(
            History(
                name="past",
                user="user",
                time="time",
                members=("item", "price", "stars"),
                max_length=4,
                with_time=True,
            ),
        ),
        split=ColumnSplit(column="fold"),
    )


def write_rich(folder: Path) -> TableSchema:
    rich_frame().write_csv(folder / "log.csv")
    item_frame().write_csv(folder / "items.csv")
    return rich_schema()
