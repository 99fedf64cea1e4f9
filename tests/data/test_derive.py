from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.delimited import Place
from rankloom.data.derive import derive_columns
from rankloom.data.table_schema import Derive

PLACE = Place("log.csv", 101)
KINDS = ("hour", "weekday", "weekend", "day", "timestamp")


def derive_all(cells: pl.Series, form: str) -> pl.DataFrame:
    items = [
        Derive.model_validate({"name": kind, "source": "t", "kind": kind, "format": form})
        for kind in KINDS
    ]
    return derive_columns(pl.DataFrame({"t": cells}), items, PLACE).drop("t")


def expected(times: list[datetime | None]) -> list[tuple[int | None, ...]]:
    return [
        (None,) * 5
        if time is None
        else (
            time.hour,
            time.weekday(),
            int(time.weekday() >= 5),
            time.toordinal() - datetime(1970, 1, 1).toordinal(),
            int(time.timestamp() // 1),
        )
        for time in times
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.datetimes(datetime(1901, 1, 1), datetime(2099, 1, 1)), min_size=1, max_size=5))
def test_parts_agree_with_the_calendar(naive: list[datetime]) -> None:
    times = [time.replace(tzinfo=UTC, microsecond=0) for time in naive]
    seconds = pl.Series([int(time.timestamp()) for time in times], dtype=pl.Int64)
    for cells, form in [
        (seconds, "unix"),
        (seconds.cast(pl.Float64) + 0.25, "unix"),
        (seconds.cast(pl.String), "unix"),
        (seconds * 1000 + 999, "unix_ms"),
        (pl.Series([time.isoformat() for time in times]), "iso"),
        (pl.Series([time.strftime("%Y-%m-%d %H:%M:%S") for time in times]), "iso"),
        (pl.Series([time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in times]), "iso"),
        (seconds, "iso"),
    ]:
        found = derive_all(cells, form)
        assert found.rows() == expected(list(times))
        assert set(found.dtypes) == {pl.Int64}


def test_avazu_hours() -> None:
    times = [datetime(2014, 10, 21, 0, tzinfo=UTC), datetime(2004, 2, 29, 23, tzinfo=UTC), None]
    for cells in (pl.Series([14102100, 4022923, None]), pl.Series(["14102100", "04022923", None])):
        assert derive_all(cells, "yymmddhh").rows() == expected(times)


def test_iso_dates_minutes_and_offsets() -> None:
    cells = pl.Series(["2014-10-21", "2014-10-21 03:04", "2014-10-21T03:04:05.5+02:00", None])
    times = [
        datetime(2014, 10, 21, tzinfo=UTC),
        datetime(2014, 10, 21, 3, 4, tzinfo=UTC),
        datetime(2014, 10, 21, 1, 4, 5, tzinfo=UTC),
        None,
    ]
    assert derive_all(cells, "iso").rows() == expected(times)


def test_a_derived_column_can_be_a_source() -> None:
    items = [
        Derive(name="time", source="t", kind="timestamp", format="yymmddhh"),
        Derive(name="hour", source="time", kind="hour"),
    ]
    found = derive_columns(pl.DataFrame({"t": [14102107]}), items, PLACE)
    assert found["hour"].to_list() == [7]


@pytest.mark.parametrize(
    ("cells", "form"),
    [
        (["14102100", "abc"], "unix"),
        ([14102100, 14132100], "yymmddhh"),
        ([14102100, 14102124], "yymmddhh"),
        ([14102100, 14022900], "yymmddhh"),
        ([14102100, 5], "yymmddhh"),
        (["2014-10-21", "21.10.2014"], "iso"),
    ],
)
def test_a_cell_that_is_no_time_names_its_row(cells: list[object], form: str) -> None:
    message = rf"log\.csv: row 102: column t holds {cells[1]!r}, which is no time of format {form}"
    with pytest.raises(ValueError, match=message):
        derive_all(pl.Series(cells), form)


def test_lists_hold_no_times() -> None:
    with pytest.raises(ValueError, match="column t is of type List"):
        derive_all(pl.Series([[1]]), "unix")
