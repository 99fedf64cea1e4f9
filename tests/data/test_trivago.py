"""From trivago's log of actions to one row per shown hotel."""

import itertools
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rankloom.data.prepare import prepare
from rankloom.data.sources import get, trivago
from rankloom.data.sources.trivago import CLICKOUT, HISTORY_LENGTH, ITEM_ACTIONS

COLUMNS = [
    "user_id",
    "session_id",
    "timestamp",
    "step",
    "action_type",
    "reference",
    "platform",
    "city",
    "device",
    "current_filters",
    "impressions",
    "prices",
]
IMAGE = "interaction item image"
Row = dict[str, Any]


def action(session: str, time: int, step: int, kind: str, reference: str, **given: Any) -> Row:
    values = {"platform": "DE", "city": "Bonn, Germany", "device": "mobile", **given}
    row = (f"user of {session}", session, time, step, kind, reference)
    return dict.fromkeys(COLUMNS) | dict(zip(COLUMNS, row, strict=False)) | values


def click(session: str, time: int, step: int, hotel: int, shown: dict[int, int]) -> Row:
    lists = {"impressions": "|".join(map(str, shown)), "prices": "|".join(map(str, shown.values()))}
    return action(session, time, step, CLICKOUT, str(hotel), **lists)


def write_log(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema_overrides=dict.fromkeys(COLUMNS[4:], pl.String)).write_csv(
        folder / "train.csv"
    )
    return folder


def take(rows: list[Row], tmp_path: Path) -> pl.DataFrame:
    write_log(tmp_path / "from", rows)
    folder = get("trivago", origin=tmp_path / "from", out=tmp_path / "out")
    return pl.read_parquet(folder / "impressions.parquet")


def test_one_request_by_hand(tmp_path: Path) -> None:
    rows = [
        action("s", 100, 1, "search for destination", "Bonn, Germany"),
        action("s", 105, 2, IMAGE, "7"),
        action("s", 106, 3, IMAGE, "unknown"),
        action("s", 108, 4, "filter selection", "Pool"),
        click("s", 110, 5, 7, {5: 80, 7: 95}) | {"current_filters": "5 Star|Pool"},
        action("s", 120, 6, IMAGE, "5"),
    ]
    found = take(rows, tmp_path)
    request = {
        "request_id": 4,
        "session_id": "s",
        "timestamp": 110,
        "split": "test",
        "platform": "DE",
        "city": "Bonn, Germany",
        "device": "mobile",
        "filters": "5 Star|Pool",
        "history_item": [7],
        "history_action": [IMAGE],
        "history_time": [105],
    }
    assert found.sort("position").to_dicts() == [
        request | {"position": 1, "item_id": 5, "price": 80, "click": 0},
        request | {"position": 2, "item_id": 7, "price": 95, "click": 1},
    ]


def test_a_click_on_a_hotel_that_is_not_shown_is_history_but_no_request(tmp_path: Path) -> None:
    rows = [click("s", 1, 1, 9, {5: 1, 6: 1}), click("s", 2, 2, 6, {5: 1, 6: 1})]
    found = take(rows, tmp_path)
    assert found["request_id"].unique().to_list() == [1]
    assert found["history_item"].to_list() == [[9], [9]]
    assert found["history_action"].to_list() == [[CLICKOUT], [CLICKOUT]]


def test_steps_that_start_again_go_by_time(tmp_path: Path) -> None:
    rows = [
        click("s", 500, 1, 5, {5: 1, 6: 1}),
        action("s", 100, 1, IMAGE, "3"),
        action("s", 100, 2, IMAGE, "4"),
        click("s", 200, 3, 6, {5: 1, 6: 1}),
    ]
    found = take(rows, tmp_path).filter(pl.col("click") == 1).sort("timestamp")
    assert found["timestamp"].to_list() == [200, 500]
    assert found["history_item"].to_list() == [[3, 4], [3, 4, 6]]


def random_log(seed: int, sessions: int) -> list[Row]:
    """Sessions of up to 60 actions, mixed with each other, times with many ties."""
    draw = random.Random(seed)
    rows = []
    for number in range(sessions):
        time = draw.randrange(1_000)
        for step in range(1, draw.randrange(2, 60)):
            time += draw.randrange(3)
            hotel = draw.randrange(1, 30)
            shown = {item: draw.randrange(40, 300) for item in draw.sample(range(1, 30), 5)}
            kind = draw.choice([*ITEM_ACTIONS, CLICKOUT, "change of sort order"])
            if kind == CLICKOUT:
                rows.append(click(f"session {number}", time, step, hotel, shown))
            else:
                rows.append(action(f"session {number}", time, step, kind, str(hotel)))
    # Sessions need not stand together: a stable sort keeps only the order inside each.
    rows.sort(key=lambda row: int(row["timestamp"]))
    return rows


def slow_rows(log: list[Row]) -> list[tuple[Any, ...]]:
    """request, session, position, hotel, price, click, history, by loops."""
    found = []
    for place, row in enumerate(log):
        shown = [int(item) for item in (row["impressions"] or "").split("|") if item]
        if row["action_type"] != CLICKOUT or int(row["reference"]) not in shown:
            continue
        past = [
            other
            for number, other in enumerate(log)
            if other["session_id"] == row["session_id"]
            and (other["timestamp"], other["step"], number) < (row["timestamp"], row["step"], place)
            and other["action_type"] in ITEM_ACTIONS
        ][-HISTORY_LENGTH:]
        events = [(int(e["reference"]), e["action_type"], e["timestamp"]) for e in past]
        prices = [int(price) for price in row["prices"].split("|")]
        for position, (item, price) in enumerate(zip(shown, prices, strict=True), start=1):
            clicked = int(item == int(row["reference"]))
            found.append((place, row["session_id"], position, item, price, clicked, events))
    return found


def test_rows_agree_with_the_slow_reference_and_chunks_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = random_log(seed=3, sessions=25)
    found = take(log, tmp_path)
    rows = [
        (
            *(row[name] for name in ("request_id", "session_id", "position", "item_id", "price")),
            row["click"],
            list(zip(row["history_item"], row["history_action"], row["history_time"], strict=True)),
        )
        for row in found.sort("request_id", "position").to_dicts()
    ]
    reference = slow_rows(log)
    assert rows == reference
    assert any(len(row[-1]) == HISTORY_LENGTH for row in reference)
    assert any(not row[-1] for row in reference)

    monkeypatch.setattr(trivago, "_REQUESTS_AT_ONCE", 3)
    monkeypatch.setattr(trivago, "_NUM_PARTS", 5)
    again = take(log, tmp_path / "small")
    keys = ["request_id", "position"]
    assert again.sort(keys).equals(found.sort(keys))


def test_sessions_are_split_by_their_first_request(tmp_path: Path) -> None:
    rows = []
    for number, time in enumerate(random.Random(1).sample(range(1_000), 30)):
        # An early look and a late second request do not move a session.
        rows.append(action(f"s{number}", 0, 1, IMAGE, "5"))
        rows.append(click(f"s{number}", 10_000 + time, 2, 5, {5: 1, 6: 1}))
        rows.append(click(f"s{number}", 20_000 - time, 3, 6, {5: 1, 6: 1}))
    found = take(rows, tmp_path)
    first = found.group_by("session_id").agg(
        pl.col("timestamp").min(), pl.col("split").unique().alias("splits")
    )
    splits = [names for (names,) in first.sort("timestamp")["splits"].to_list()]
    assert splits == ["train"] * 24 + ["valid"] * 3 + ["test"] * 3


def test_the_prepared_rows_group_by_request_and_share_the_table_of_hotels(tmp_path: Path) -> None:
    write_log(tmp_path / "from", random_log(seed=4, sessions=40))
    (tmp_path / "from" / "item_metadata.csv").write_text(
        "item_id,properties\n1,Pool|WiFi\n2,Pool\n"
    )
    folder = get("trivago", origin=tmp_path / "from", out=tmp_path / "out")
    dataset = prepare(folder / "schema.toml", tmp_path / "prepared")
    group = dataset.schema.sequence("history")
    assert [member.table for member in group.ids] == [
        "item_id",
        "history.action",
        "item.properties",
    ]
    assert group.has_time
    assert group.max_length == HISTORY_LENGTH
    assert dataset.schema.has_group
    assert dataset.schema.scenarios == ("<unknown>", "DE")
    raw = pl.read_parquet(folder / "impressions.parquet")
    for split in ("train", "valid", "test"):
        rows = dataset.split(split).slice(0, dataset.split(split).rows)
        wanted = raw.filter(pl.col("split") == split)
        assert rows.group is not None
        assert rows.group.tolist() == wanted["request_id"].to_list()
        assert rows.time is not None
        events = rows.sequences["history"]
        assert events.time is not None
        for row, (start, stop) in enumerate(itertools.pairwise(events.offsets.tolist())):
            times = events.time[start:stop].tolist()
            assert times == wanted["history_time"][row].to_list()
            assert all(time <= rows.time[row] for time in times)


def test_the_platform_is_the_scenario_and_a_field_and_the_position_is_a_field(
    tmp_path: Path,
) -> None:
    rows = []
    for number in range(30):
        platform = {"platform": ("DE", "BR", "JP")[number % 3] if number < 29 else "FI"}
        rows.append(click(f"s{number}", number, 1, 5, {6: 1, 5: 2}) | platform)
    write_log(tmp_path / "from", rows)
    folder = get("trivago", origin=tmp_path / "from", out=tmp_path / "out")
    dataset = prepare(folder / "schema.toml", tmp_path / "prepared")
    # The last session is a test session, and its platform has no other.
    assert dataset.schema.scenarios == ("<unknown>", "BR", "DE", "JP")
    names = [field.name for field in dataset.schema.categorical]
    platform, position = names.index("platform"), names.index("position")
    known = pl.read_parquet(dataset.folder / "vocabulary" / "platform.parquet")
    value = dict(zip(known["index"], known["value"], strict=True)) | {1: "<unknown>"}
    for split in ("train", "valid", "test"):
        batch = dataset.split(split).slice(0, dataset.split(split).rows)
        assert batch.scenario is not None
        scenarios = [dataset.schema.scenarios[index] for index in batch.scenario.tolist()]
        assert [value[index] for index in batch.categorical[:, platform].tolist()] == scenarios
        assert ("<unknown>" in scenarios) == (split == "test")
        # Two positions, neither of them unknown.
        assert sorted(set(batch.categorical[:, position].tolist())) == [2, 3]


def test_prices_that_do_not_fit_name_the_request(tmp_path: Path) -> None:
    rows = [click("s", 1, 1, 5, {5: 1, 6: 1}) | {"prices": "1"}]
    message = r"session s, step 1: a click-out lists 2 hotels and needs as many prices"
    with pytest.raises(ValueError, match=message):
        take(rows, tmp_path)


@pytest.mark.parametrize("rows", [[action("s", 1, 1, IMAGE, "5")], [click("s", 1, 1, 4, {5: 1})]])
def test_a_log_without_requests_is_an_error(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no click-out on a hotel that its list shows"):
        take(rows, tmp_path)


@pytest.mark.data
def test_the_sample_gives_the_rows_that_were_made_of_it_elsewhere(
    public_data: Path, tmp_path: Path
) -> None:
    folder = get("trivago", origin=public_data / "trivago", out=tmp_path)
    found = pl.read_parquet(folder / "impressions.parquet")
    assert found["request_id"].n_unique() == 13_596
    assert found["item_id"].n_unique() == 106_852
    assert found["session_id"].n_unique() == 7_214
    assert found.group_by("request_id").agg(pl.col("click").sum())["click"].unique().to_list() == [
        1
    ]
    keys = ["request", "position"]
    columns = [*keys, "timestamp", "platform", "city", "device", "item_id", "price", "click"]
    other = pl.read_parquet(public_data / "trivago" / "impressions.parquet").sort(
        "request_id", "position"
    )
    # Theirs counts requests, ours are lines of the log.
    made = found.with_columns((pl.col("request_id").rank("dense") - 1).alias("request")).sort(keys)
    text = pl.col("platform", "city", "device", "split").cast(pl.String)
    other = other.with_columns(text, pl.col("request_id").alias("request"))
    whole_numbers = pl.col(*keys, "timestamp", "item_id", "price", "click").cast(pl.Int64)
    columns += ["split"]
    assert (
        made.with_columns(whole_numbers)
        .select(columns)
        .equals(other.with_columns(whole_numbers).select(columns))
    )
    # Theirs counts the session's earlier actions on the hotel, all of them.
    counts = made.select(
        pl.col("history_item").list.len().alias("events"),
        pl.struct("history_item", "item_id")
        .map_elements(lambda row: row["history_item"].count(row["item_id"]), return_dtype=pl.Int64)
        .alias("before"),
        other["prev_actions_on_item"].cast(pl.Int64),
    )
    whole = counts.filter(pl.col("events") < HISTORY_LENGTH)
    assert whole["before"].equals(whole["prev_actions_on_item"], check_names=False)
    assert (counts["before"] <= counts["prev_actions_on_item"]).all()
