"""Amazon's sequences as rows of click prediction: which rows, which histories, no leaks."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.batch import Batch
from rankloom.data.prepare import prepare
from rankloom.data.sequences import prepare_sequences
from rankloom.data.sources import get
from rankloom.data.store import Dataset

USERS, ITEMS = 30, 80
SPLITS = ("train", "valid", "test")


def write_form(folder: Path, sequences: list[list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(
        {"user_id": range(1, len(sequences) + 1), "items": sequences},
        schema_overrides={"user_id": pl.Int32, "items": pl.List(pl.Int32)},
    ).write_parquet(folder / "sequences.parquet")
    paths = [
        [f"Beauty > Care > leaf {item % 3}", "Beauty > Bath"] if item % 10 else ["Beauty"]
        for item in range(1, ITEMS + 1)
    ]
    brands = [f"brand {item % 4}" if item % 4 else None for item in range(1, ITEMS + 1)]
    pl.DataFrame(
        {
            "item_id": range(1, ITEMS + 1),
            "title": [f"Soap {item}" for item in range(1, ITEMS + 1)],
            "category_path": paths,
            "brand": brands,
        },
        schema_overrides={"item_id": pl.Int32},
    ).write_parquet(folder / "items.parquet")
    return folder


def drawn_sequences() -> list[list[int]]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 62, USERS)
    return [(generator.permutation(ITEMS)[:n] + 1).tolist() for n in lengths]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amazon")
    origin = write_form(folder / "from", drawn_sequences())
    return get("amazon-beauty", origin=origin, out=folder, verify=False)


@pytest.fixture(scope="module")
def datasets(raw: Path) -> dict[str, Dataset]:
    names = ("schema", "schema-gauc")
    return {name: prepare(raw / f"{name}.toml", raw.parent / name) for name in names}


def rows(dataset: Dataset, split: str) -> Batch:
    return dataset.split(split).slice(0, dataset.split(split).rows)


def items_of(dataset: Dataset, ids: list[int]) -> list[int]:
    frame = pl.read_parquet(dataset.folder / "vocabulary/item_id.parquet")
    value = dict(zip(frame["index"], frame["value"], strict=True))
    return [int(value[number]) for number in ids]


def test_tables_hold_order_department_and_leaf(raw: Path) -> None:
    interactions = pl.read_parquet(raw / "interactions.parquet")
    assert interactions.columns == ["user_id", "item_id", "order"]
    for user, sequence in enumerate(drawn_sequences(), start=1):
        own = interactions.filter(user_id=user)
        assert own["item_id"].to_list() == sequence
        assert own["order"].to_list() == list(range(len(sequence)))
    items = pl.read_parquet(raw / "items.parquet")
    assert items["department"].to_list()[8:11] == ["Care", None, "Care"]
    assert items["category"].to_list()[8:11] == ["leaf 0", None, "leaf 2"]


def test_every_item_from_the_third_on_is_a_positive_with_one_negative(
    datasets: dict[str, Dataset],
) -> None:
    dataset = datasets["schema"]
    sequences = drawn_sequences()
    places: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        batch = rows(dataset, split)
        assert batch.labels is not None
        assert batch.time is not None
        assert batch.group is not None
        events = batch.sequences["history"]
        labels = batch.labels[:, 0].tolist()
        assert labels == [1.0, 0.0] * (len(labels) // 2)
        field = [f.name for f in dataset.schema.categorical].index("item_id")
        targets = items_of(dataset, batch.categorical[:, field].tolist())
        for row, place in enumerate(batch.time.tolist()):
            sequence = sequences[int(batch.group[row]) - 1]
            if labels[row]:
                assert targets[row] == sequence[place]
                places[split].append((int(batch.group[row]), place))
            else:
                assert targets[row] not in sequence
            seen = events.ids[events.offsets[row] : events.offsets[row + 1], 0].tolist()
            # The newest fifty before the row's place, and nothing at it or after it.
            assert items_of(dataset, seen) == sequence[max(place - 50, 0) : place]
    lengths = [len(sequence) for sequence in sequences]
    assert sorted(places["test"]) == [(u, n - 1) for u, n in enumerate(lengths, start=1)]
    assert sorted(places["valid"]) == [(u, n - 2) for u, n in enumerate(lengths, start=1)]
    wanted = [(u, k) for u, n in enumerate(lengths, start=1) for k in range(2, n - 2)]
    assert sorted(places["train"]) == wanted


def test_the_second_schema_has_ten_negatives_for_held_out_rows_alone(
    datasets: dict[str, Dataset],
) -> None:
    for split in SPLITS:
        one, more = (rows(datasets[name], split).labels for name in ("schema", "schema-gauc"))
        assert one is not None
        assert more is not None
        assert more.sum() == one.sum()
        copies = 2 if split == "train" else 11
        assert len(more) == copies * int(one.sum())


def test_side_fields_are_those_of_the_target_and_of_every_event(
    datasets: dict[str, Dataset],
) -> None:
    schema = datasets["schema"].schema
    names = ["item_id", "item.department", "item.category", "item.brand"]
    assert [field.name for field in schema.categorical] == names
    assert [member.name for member in schema.sequence("history").ids] == names
    assert schema.has_group


def test_as_sequences_the_lists_and_the_items_are_those_of_the_form(
    raw: Path, tmp_path: Path
) -> None:
    data = prepare_sequences(raw / "sequences.toml", tmp_path / "made")
    assert data.name == "amazon-beauty"
    assert data.catalogue.ids == [str(item) for item in range(1, ITEMS + 1)]
    assert data.users == [str(user) for user in range(1, USERS + 1)]
    lists = [data.histories.of(user).tolist() for user in range(USERS)]
    assert lists == drawn_sequences()
    assert data.catalogue.titles[4] == "Soap 5"
    assert data.catalogue.texts[4] == "Soap 5. brand 1. Beauty > Care > leaf 2 Beauty > Bath."
    assert data.catalogue.texts[39] == "Soap 40. Beauty."
    assert data.catalogue.attribute_names == ("department", "category", "brand")
    labels = [
        [own[number - 1] if number else None for own, number in zip(names, row, strict=True)]
        for names, row in (
            (data.catalogue.attribute_labels, data.catalogue.attributes[item].tolist())
            for item in (4, 39)
        )
    ]
    assert labels == [["Care", "leaf 2", "brand 1"], [None, None, None]]


def test_toys_has_no_brands_and_sports_no_titles(tmp_path: Path) -> None:
    origin = write_form(tmp_path / "from", drawn_sequences())
    items = pl.read_parquet(origin / "items.parquet")
    toys = get("amazon-toys", origin=origin, out=tmp_path, verify=False)
    data = prepare_sequences(toys / "sequences.toml", tmp_path / "toys")
    assert data.catalogue.texts[4] == "Soap 5. Beauty > Care > leaf 2 Beauty > Bath."
    assert data.catalogue.attribute_names == ("department", "category")
    items.select(
        "item_id",
        "brand",
        pl.col("title").str.to_lowercase().alias("keywords"),
        categories=pl.lit(["Camping", "Tents"], pl.List(pl.String)),
    ).write_parquet(origin / "items.parquet")
    sports = get("amazon-sports", origin=origin, out=tmp_path, verify=False)
    data = prepare_sequences(sports / "sequences.toml", tmp_path / "sports")
    assert data.catalogue.titles[4] == "soap 5"
    assert data.catalogue.texts[4] == "soap 5. brand 1. Camping Tents."
    assert data.catalogue.attribute_labels[:2] == (("Camping",), ("Tents",))


def test_an_item_twice_in_one_sequence_is_refused(tmp_path: Path) -> None:
    origin = write_form(tmp_path / "from", [[1, 2, 3, 4, 5], [1, 2, 7, 3, 7]])
    with pytest.raises(ValueError, match="a user's items must differ; user 2 has item 7 twice"):
        get("amazon-toys", origin=origin, out=tmp_path, verify=False)


def test_an_item_that_the_items_lack_is_refused(tmp_path: Path) -> None:
    origin = write_form(tmp_path / "from", [[1, 9, 3, 81, 5], [9, 2, 7, 3, 4]])
    items = pl.read_parquet(origin / "items.parquet")
    items.filter(pl.col("item_id") != 9).write_parquet(origin / "items.parquet")
    message = r"items\.parquet lacks 2 of the sequences' items, such as 9"
    with pytest.raises(ValueError, match=message):
        get("amazon-toys", origin=origin, out=tmp_path, verify=False)
