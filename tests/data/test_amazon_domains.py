"""Three domains with shared users: whose rows, whose items, and negatives of the same domain."""

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.batch import Batch
from rankloom.data.prepare import prepare
from rankloom.data.sources import get
from rankloom.data.sources.amazon_domains import DOMAINS
from rankloom.data.store import Dataset

ITEMS = {"beauty": 20, "toys": 12, "sports": 15}
FIRST = {"beauty": 0, "toys": 20, "sports": 32}
"""Items of the domains before."""
USERS = {"beauty": range(40), "toys": range(25, 55), "sports": range(15, 45)}
"""Reviewers, whose numbers are the same in every domain."""
SPLITS = ("train", "valid", "test")

Sequences = dict[str, list[list[int]]]


def drawn_sequences() -> Sequences:
    generator = np.random.default_rng(0)
    return {
        domain: [
            (generator.permutation(ITEMS[domain])[: generator.integers(5, 9)] + 1).tolist()
            for _ in users
        ]
        for domain, users in USERS.items()
    }


def write_form(folder: Path, sequences: Sequences) -> Path:
    for domain, rows in sequences.items():
        place = folder / DOMAINS[domain].name
        place.mkdir(parents=True)
        pl.DataFrame(
            {"user_id": range(1, len(rows) + 1), "global_user": USERS[domain], "items": rows},
            schema_overrides={"user_id": pl.Int32, "items": pl.List(pl.Int32)},
        ).write_parquet(place / "sequences.parquet")
        items = pl.DataFrame({"item_id": range(1, ITEMS[domain] + 1)}).with_columns(
            categories=pl.format("{} leaf {}", pl.lit(domain), pl.col("item_id") % 3)
            .reshape((-1, 1))
            .arr.to_list(),
        )
        if domain != "toys":
            items = items.with_columns(brand=pl.format("brand {}", pl.col("item_id") % 4))
        items.write_parquet(place / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domains")
    origin = write_form(folder / "from", drawn_sequences())
    return get("amazon-domains", origin=origin, out=folder, verify=False)


@pytest.fixture(scope="module")
def dataset(raw: Path) -> Dataset:
    return prepare(raw / "schema.toml", raw.parent / "prepared")


def rows(dataset: Dataset, split: str) -> Batch:
    return dataset.split(split).slice(0, dataset.split(split).rows)


def values(dataset: Dataset, batch: Batch, field: str) -> list[str]:
    """Raw values of a field, as text."""
    frame = pl.read_parquet(dataset.folder / "vocabulary" / f"{field}.parquet")
    known = dict(zip(frame["index"], frame["value"].cast(pl.String), strict=True))
    place = [f.name for f in dataset.schema.categorical].index(field)
    return [known[number] for number in batch.categorical[:, place].tolist()]


def test_items_are_numbered_on_and_users_are_shared(raw: Path) -> None:
    interactions = pl.read_parquet(raw / "interactions.parquet")
    columns = ["domain", "user_id", "sequence_id", "item_id", "order"]
    assert interactions.columns == columns
    start = 0
    for domain, sequences in drawn_sequences().items():
        for place, (user, sequence) in enumerate(zip(USERS[domain], sequences, strict=True), 1):
            own = interactions.filter(sequence_id=start + place)
            assert own["domain"].unique().to_list() == [domain]
            assert own["user_id"].unique().to_list() == [user]
            assert own["item_id"].to_list() == [FIRST[domain] + item for item in sequence]
            assert own["order"].to_list() == list(range(len(sequence)))
        start += len(sequences)
    assert interactions["sequence_id"].n_unique() == start
    items = pl.read_parquet(raw / "items.parquet")
    assert items["item_id"].to_list() == list(range(1, sum(ITEMS.values()) + 1))
    assert items["domain"].to_list() == [
        name for name, count in ITEMS.items() for _ in range(count)
    ]
    assert items.filter(item_id=FIRST["sports"] + 5).row(0) == (
        37,
        "sports",
        "sports leaf 2",
        "sports leaf 2",
        "brand 1",
    )
    assert items.filter(domain="toys")["brand"].null_count() == ITEMS["toys"]


def test_rows_histories_and_negatives_stay_in_their_domain(dataset: Dataset) -> None:
    sequences = drawn_sequences()
    places: dict[str, list[tuple[str, int, int]]] = {split: [] for split in SPLITS}
    drawn: dict[str, set[int]] = {domain: set() for domain in USERS}
    for split in SPLITS:
        batch = rows(dataset, split)
        assert batch.labels is not None
        assert batch.scenario is not None
        assert batch.time is not None
        events = batch.sequences["history"]
        table = pl.read_parquet(dataset.folder / "vocabulary/item_id.parquet")
        item = dict(zip(table["index"], table["value"].cast(pl.Int64), strict=True))
        labels = batch.labels[:, 0].tolist()
        assert labels == [1.0, 0.0] * (len(labels) // 2)
        users, targets = values(dataset, batch, "user_id"), values(dataset, batch, "item_id")
        domains = values(dataset, batch, "domain")
        named = [dataset.schema.scenarios[number] for number in batch.scenario.tolist()]
        assert named == domains
        for row, (domain, user, place) in enumerate(
            zip(domains, users, batch.time.tolist(), strict=True)
        ):
            first = FIRST[domain]
            sequence = [first + k for k in sequences[domain][USERS[domain].index(int(user))]]
            target = int(targets[row])
            assert first < target <= first + ITEMS[domain]
            if labels[row]:
                assert target == sequence[place]
                places[split].append((domain, int(user), place))
            else:
                assert target not in sequence
                drawn[domain].add(target)
            seen = events.ids[events.offsets[row] : events.offsets[row + 1], 0].tolist()
            assert [item[number] for number in seen] == sequence[:place]
    lengths = [
        (domain, user, len(sequence))
        for domain in USERS
        for user, sequence in zip(USERS[domain], sequences[domain], strict=True)
    ]
    assert sorted(places["test"]) == sorted((d, u, n - 1) for d, u, n in lengths)
    assert sorted(places["valid"]) == sorted((d, u, n - 2) for d, u, n in lengths)
    assert sorted(places["train"]) == sorted(
        (d, u, k) for d, u, n in lengths for k in range(2, n - 2)
    )
    # The draw reaches most of a domain.
    assert all(len(drawn[domain]) > ITEMS[domain] / 2 for domain in USERS)


def test_the_group_is_one_user_in_one_domain(dataset: Dataset) -> None:
    batch = rows(dataset, "test")
    assert batch.group is not None
    pairs = set(
        zip(values(dataset, batch, "domain"), values(dataset, batch, "user_id"), strict=True)
    )
    assert len(set(batch.group.tolist())) == len(pairs) == sum(map(len, USERS.values()))
    assert len({user for _, user in pairs}) == 55


def test_side_fields_are_those_of_the_target_and_of_every_event(dataset: Dataset) -> None:
    names = ["item.department", "item.category", "item.brand"]
    categorical = [field.name for field in dataset.schema.categorical]
    assert categorical == ["domain", "user_id", "item_id", *names]
    assert [m.name for m in dataset.schema.sequence("history").ids] == ["item_id", *names]


def test_an_archive_of_the_three_folders_is_taken(tmp_path: Path) -> None:
    origin = write_form(tmp_path / "from", drawn_sequences())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in origin.rglob("*.parquet"):
            archive.write(path, path.relative_to(tmp_path))
    made = get("amazon-domains", origin=tmp_path / "all.zip", out=tmp_path / "a", verify=False)
    plain = get("amazon-domains", origin=origin, out=tmp_path / "b", verify=False)
    for name in ("interactions.parquet", "items.parquet"):
        assert pl.read_parquet(made / name).equals(pl.read_parquet(plain / name))


def test_errors_name_the_domain(tmp_path: Path) -> None:
    sequences = drawn_sequences()
    sequences["toys"][1] = [1, 2, 3, 2, 5]
    origin = write_form(tmp_path / "from", sequences)
    message = "^amazon-toys: a user's items must differ; user 2 has item 2 twice"
    with pytest.raises(ValueError, match=message):
        get("amazon-domains", origin=origin, out=tmp_path, verify=False)


def test_a_reviewer_with_two_sequences_in_a_domain_is_refused(tmp_path: Path) -> None:
    origin = write_form(tmp_path / "from", drawn_sequences())
    path = origin / "amazon-sports" / "sequences.parquet"
    frame = pl.read_parquet(path).with_columns(global_user=pl.lit(20))
    frame.write_parquet(path)
    message = "^amazon-sports: a user has one sequence; global_user 20 has several"
    with pytest.raises(ValueError, match=message):
        get("amazon-domains", origin=origin, out=tmp_path, verify=False)


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_numbers_from_zero_are_refused(tmp_path: Path, column: str) -> None:
    """They would make the first of a domain the last of the domain before."""
    origin = write_form(tmp_path / "from", drawn_sequences())
    name = "sequences" if column == "user_id" else "items"
    path = origin / "amazon-toys" / f"{name}.parquet"
    pl.read_parquet(path).with_columns(pl.col(column) - 1).write_parquet(path)
    if column == "item_id":
        sequences = path.with_name("sequences.parquet")
        shifted = pl.read_parquet(sequences).with_columns(
            pl.col("items").list.eval(pl.element() - 1)
        )
        shifted.write_parquet(sequences)
    with pytest.raises(ValueError, match=f"^amazon-toys: {column} must count from 1; got 0"):
        get("amazon-domains", origin=origin, out=tmp_path, verify=False)


def test_a_folder_that_lacks_a_domain_lists_what_it_takes(tmp_path: Path) -> None:
    sequences = drawn_sequences()
    del sequences["sports"]
    origin = write_form(tmp_path / "from", sequences)
    message = r"holds no known form of .*amazon-sports/sequences\.parquet"
    with pytest.raises(ValueError, match=message):
        get("amazon-domains", origin=origin, out=tmp_path, verify=False)
