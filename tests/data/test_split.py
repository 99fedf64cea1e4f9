from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data.core import sampled_rows
from rankloom.data.delimited import Place
from rankloom.data.keys import KeyColumn
from rankloom.data.split import (
    SplitCodes,
    check_not_empty,
    column_split,
    held_out,
    leave_one_out_split,
    random_split,
    row_draws,
    rows_of_file,
    stratified_split,
    time_split,
    within_split,
)
from rankloom.data.table_schema import (
    ColumnSplit,
    FileSplit,
    LeaveOneOutSplit,
    RandomSplit,
    TimeSplit,
)

shares = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))
logs = st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=60)


def columns(log: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([user for user, _ in log], dtype=np.int32),
        np.array([time for _, time in log], dtype=np.int64),
    )


def slow_last(log: list[tuple[int, int]], count: Callable[[int], tuple[int, int]]) -> list[int]:
    """Hold out the last rows of each user, one user at a time."""
    codes = [0] * len(log)
    for user in {user for user, _ in log}:
        rows = sorted((time, row) for row, (other, time) in enumerate(log) if other == user)
        num_valid, num_test = count(len(rows))
        for place, (_, row) in enumerate(reversed(rows)):
            codes[row] = 2 if place < num_test else 1 if place < num_test + num_valid else 0
    return codes


@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**40))
def test_draws_depend_on_the_row_alone(seed: int, left: int, right: int, first: int) -> None:
    whole = row_draws(seed, first, left + right)
    parts = [row_draws(seed, first, left), row_draws(seed, first + left, right)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.all((whole >= 0) & (whole < 1))


def test_random_shares_and_seeds() -> None:
    split = RandomSplit(valid=0.2, test=0.1, seed=5)
    counts = np.bincount(random_split(split, 0, 100_000), minlength=3)
    # Six standard deviations of a share of 0.2 in 100,000 rows are 760 rows.
    assert np.all(np.abs(counts - [70_000, 20_000, 10_000]) < 760)
    other = random_split(split.model_copy(update={"seed": 6}), 0, 100_000)
    same = np.mean(other == random_split(split, 0, 100_000))
    assert abs(same - (0.7**2 + 0.2**2 + 0.1**2)) < 0.01


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=80), shares, st.integers(0, 9))
def test_stratified_shares_are_exact(
    strata: list[int], share: tuple[float, float], seed: int
) -> None:
    values = np.array(strata, dtype=np.int32)
    split = RandomSplit(valid=share[0], test=share[1], seed=seed, stratify="label")
    codes = stratified_split(split, values)
    for value in set(strata):
        counts = np.bincount(codes[values == value], minlength=3)
        rows = strata.count(value)
        assert counts.sum() == rows
        assert abs(counts[2] - rows * share[1]) <= 0.5 + 1e-9
        assert counts[1] == min(int(rows * share[0] + 0.5), rows - counts[2])


@given(logs, shares)
def test_time_split_is_ordered_and_keeps_ties(
    log: list[tuple[int, int]], share: tuple[float, float]
) -> None:
    _, times = columns(log)
    codes = time_split(times, *share)
    assert len(codes) == len(log)
    order = np.argsort(times, kind="stable")
    assert np.all(np.diff(codes[order]) >= 0)
    for time in set(times.tolist()):
        assert len(set(codes[times == time].tolist())) == 1
    num_valid, num_test = held_out(len(log), *share, least=0)
    # Ties move to the later split, so it is never smaller than asked for, and never by more than
    # the tie at the boundary.
    ties = int(np.bincount(times + 9).max())
    assert num_test <= (codes == 2).sum() < num_test + ties + (num_test == 0)
    assert num_test + num_valid <= (codes >= 1).sum()


def test_time_split_by_hand() -> None:
    times = np.array([5, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert time_split(times, 0.2, 0.2).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]
    # The fifth row from the end has time 5, so has the first: both go to the validation split.
    assert time_split(times, 0.3, 0.2).tolist() == [1, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert time_split(times, 0.0, 0.5).tolist() == [2, 0, 0, 0, 0, 2, 2, 2, 2, 2]


@given(logs, shares)
def test_within_agrees_with_the_slow_reference(
    log: list[tuple[int, int]], share: tuple[float, float]
) -> None:
    users, times = columns(log)
    codes = within_split(users, times, *share)
    assert codes.tolist() == slow_last(log, lambda n: held_out(n, *share, least=1))
    # Every user keeps a training row.
    assert set(users[codes == 0].tolist()) == set(users.tolist())


def test_tenths_of_users_with_few_rows() -> None:
    """The shares of MovieLens: halves round up, so five rows are enough for a test row."""
    held = {1: (0, 0), 4: (0, 0), 5: (1, 1), 14: (1, 1), 15: (2, 2), 20: (2, 2)}
    users = np.repeat(np.arange(len(held)), list(held)).astype(np.int32)
    times = np.concatenate([np.arange(rows)[::-1] for rows in held])
    codes = within_split(users, times, 0.1, 0.1)
    for user, (rows, (num_valid, num_test)) in enumerate(held.items()):
        wanted = [2] * num_test + [1] * num_valid + [0] * (rows - num_valid - num_test)
        assert codes[users == user].tolist() == wanted


def test_rows_of_one_time_are_held_out_in_input_order() -> None:
    users, times = np.zeros(10, dtype=np.int32), np.array([7] * 10)
    assert within_split(users, times, 0.1, 0.1).tolist() == [0] * 8 + [1, 2]


@given(logs)
def test_leave_one_out_agrees_with_the_slow_reference(log: list[tuple[int, int]]) -> None:
    codes = leave_one_out_split(*columns(log))
    assert codes.tolist() == slow_last(log, lambda n: (1, 1) if n >= 3 else (0, 0))


def test_held_out_rounds_halves_up_and_leaves_the_least() -> None:
    assert held_out(10, 0.25, 0.15, least=1) == (3, 2)
    assert held_out(2, 0.4, 0.5, least=1) == (0, 1)
    assert held_out(1, 0.4, 0.5, least=1) == (0, 0)
    with pytest.raises(ValueError, match=r"valid=0\.5 and test=0\.5 leave nothing for training"):
        held_out(10, 0.5, 0.5, least=0)


def test_column_values_name_the_split() -> None:
    split = ColumnSplit(column="part", train=(0, "train"), valid=(1,), test=(2,))
    place = Place("log.csv", 11)
    numbers = pl.Series([0, 1, 2, 0])
    assert column_split(split, numbers, place).tolist() == [0, 1, 2, 0]
    assert column_split(split, pl.Series(["train", "2"]), place).tolist() == [0, 2]
    message = r"log\.csv: row 13: split column part holds 'dev'; known values are 0, train, 1, 2"
    with pytest.raises(ValueError, match=message):
        column_split(split, pl.Series(["1", "2", "dev"]), place)
    with pytest.raises(ValueError, match="row 12: split column part holds None"):
        column_split(split, pl.Series([1, None]), place)


def counts(*rows: int) -> SplitCodes:
    return np.array(rows, dtype=np.int64)


def test_an_empty_split_that_was_asked_for() -> None:
    whole = RandomSplit(valid=0.0, test=0.1)
    check_not_empty(whole, counts(9, 0, 1))
    check_not_empty(ColumnSplit(column="part"), counts(9, 0, 0))
    check_not_empty(FileSplit(train="a.csv", test="b.csv"), counts(9, 0, 1))
    for split, rows, name in [
        (whole, (9, 0, 0), "test"),
        (whole, (0, 0, 9), "train"),
        (ColumnSplit(column="part"), (0, 3, 3), "train"),
        (FileSplit(train="a.csv", valid="b.csv"), (3, 0, 0), "valid"),
        (TimeSplit(column="t"), (3, 0, 3), "valid"),
        (LeaveOneOutSplit(user="u", time="t"), (9, 0, 0), "valid"),
    ]:
        with pytest.raises(ValueError, match=rf"the {name} split \(kind {split.kind}\) is empty"):
            check_not_empty(split, counts(*rows))


def test_a_share_of_a_training_file_is_drawn_for_validation() -> None:
    split = FileSplit(train="a", test="b", valid_share=0.25, seed=5)
    whole = rows_of_file(split, 0, 0, 1_000)
    assert set(whole.tolist()) == {0, 1}
    assert (whole == 1).sum() == pytest.approx(250, abs=4 * (1_000 * 0.25 * 0.75) ** 0.5)
    # The same rows whatever the chunks, and none of another file.
    parts = [rows_of_file(split, 0, start, 100) for start in range(0, 1_000, 100)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert set(rows_of_file(split, 2, 0, 1_000).tolist()) == {2}
    assert set(rows_of_file(FileSplit(train="a"), 0, 0, 1_000).tolist()) == {0}
    other = rows_of_file(split.model_copy(update={"seed": 6}), 0, 0, 1_000)
    assert other.tolist() != whole.tolist()


def test_a_validation_file_and_a_share_are_too_much() -> None:
    with pytest.raises(ValueError, match="give the validation split's files or its share"):
        FileSplit(train="a", valid="b", valid_share=0.1)


def test_values_are_drawn_for_validation_with_all_their_rows() -> None:
    split = FileSplit(train="a", valid_share=0.25, valid_by="user", seed=5)
    users = pl.Series("user", np.random.default_rng(0).integers(0, 4_000, 40_000))
    whole = rows_of_file(split, 0, 0, 40_000, users)
    held, kept = (set(users.filter(pl.Series(whole == code)).to_list()) for code in (1, 0))
    assert not held & kept
    num_users = len(held | kept)
    assert len(held) == pytest.approx(num_users / 4, abs=4 * (num_users * 0.25 * 0.75) ** 0.5)
    # The same rows whatever the chunks and the type, and none of another file.
    for size in (1_000, 7_001):
        chunks = [(start, users.slice(start, size)) for start in range(0, 40_000, size)]
        parts = [rows_of_file(split, 0, start, len(chunk), chunk) for start, chunk in chunks]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(rows_of_file(split, 0, 0, 40_000, users.cast(pl.String)), whole)
    assert set(rows_of_file(split, 2, 0, 40_000, users).tolist()) == {2}
    other = rows_of_file(split.model_copy(update={"seed": 6}), 0, 0, 40_000, users)
    assert 0 < np.mean(other[whole == 1] == 1) < 0.5


def test_rows_without_a_value_are_not_drawn() -> None:
    values = pl.Series(["", None, "", None])
    for seed in range(40):
        split = FileSplit(train="a", valid_share=0.5, valid_by="user", seed=seed)
        codes = rows_of_file(split, 0, 0, 4, values).tolist()
        assert codes in ([0, 0, 0, 0], [1, 0, 1, 0])


def test_values_are_drawn_as_a_sample_draws_them() -> None:
    key = KeyColumn(np.arange(500, dtype=np.int32), pl.Series(range(500)))
    split = FileSplit(train="a", valid_share=0.25, valid_by="user", seed=5)
    drawn = rows_of_file(split, 0, 0, 500, key.values) == 1
    assert drawn.tolist() == sampled_rows(key, 0.25, seed=5).tolist()


@pytest.mark.parametrize("options", [{}, {"valid": "b"}])
def test_values_to_draw_need_a_share(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="valid_by='user' and no valid_share: give it, or leave"):
        FileSplit(train="a", valid_by="user", **options)
