"""Which split each row goes to: 0 train, 1 valid, 2 test."""

import math
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.delimited import Place
from rankloom.data.hashing import value_draws
from rankloom.data.keys import Codes, Times
from rankloom.data.table_schema import ColumnSplit, FileSplit, LeaveOneOutSplit, RandomSplit, Split

TRAIN, VALID, TEST = 0, 1, 2
NAMES = ("train", "valid", "test")

SplitCodes = NDArray[np.int8]


def row_draws(seed: int, first_row: int, rows: int) -> NDArray[np.float64]:
    """[rows] uniform numbers in [0, 1) that depend on the seed and each row's number only.

    The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), evaluated at any position,
    so that chunks of any size get the same numbers.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    stream = _mix(np.array([seed], dtype=np.int64).view(np.uint64) * step + step)
    position = np.arange(first_row + 1, first_row + rows + 1, dtype=np.uint64)
    mixed = _mix(position * step + stream)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_split(split: RandomSplit, first_row: int, rows: int) -> SplitCodes:
    """Each row on its own; the shares hold on average."""
    draw = row_draws(split.seed, first_row, rows)
    codes = np.full(rows, TRAIN, dtype=np.int8)
    codes[draw < split.test + split.valid] = VALID
    codes[draw < split.test] = TEST
    return codes


def rows_of_file(
    split: FileSplit, code: int, first_row: int, rows: int, values: pl.Series | None = None
) -> SplitCodes:
    """The split of a file's rows; some of a training file's may be drawn for validation.

    Args:
        split: the declaration.
        code: split of the file.
        first_row: number of the first row among all rows of the table.
        rows: number of rows.
        values: [rows]; rows of one value are drawn together, those without a value are not drawn.
            None: every row on its own.
    """
    codes = np.full(rows, code, dtype=np.int8)
    if code != TRAIN or not split.valid_share:
        return codes
    if values is None:
        codes[row_draws(split.seed, first_row, rows) < split.valid_share] = VALID
        return codes
    drawn = value_draws(values, split.seed) < split.valid_share
    codes[drawn & values.is_not_null().to_numpy()] = VALID
    return codes


def stratified_split(split: RandomSplit, strata: Codes) -> SplitCodes:
    """Random within every value of a column; each value's shares are exact up to rounding.

    A missing value is a value of its own.
    """
    draw = row_draws(split.seed, 0, len(strata))
    order = np.lexsort((draw, strata))
    return _hold_out_last(strata, order, lambda n: held_out(n, split.valid, split.test, least=0))


def time_split(times: Times, valid: float, test: float) -> SplitCodes:
    """The newest rows are test, those before them validation.

    Rows of one time stay together and go to the later split, so every training row is strictly
    earlier than every validation row, and those than every test row.
    """
    rows = len(times)
    num_valid, num_test = held_out(rows, valid, test, least=0)
    codes = np.full(rows, TRAIN, dtype=np.int8)
    ordered = np.sort(times)
    if num_valid:
        codes[times >= ordered[rows - num_test - num_valid]] = VALID
    if num_test:
        codes[times >= ordered[rows - num_test]] = TEST
    return codes


def within_split(users: Codes, times: Times, valid: float, test: float) -> SplitCodes:
    """The last shares of every user's own rows; of equal times, the later input row is later.

    Shares are rounded to the nearest row (halves up) for each user, and one row at least stays in
    training, so users with few rows may have none held out.
    """
    order = np.lexsort((times, users))
    return _hold_out_last(users, order, lambda n: held_out(n, valid, test, least=1))


def leave_one_out_split(users: Codes, times: Times) -> SplitCodes:
    """Each user's last row is test, the one before it validation.

    Of equal times, the later input row is later. Users with fewer than three rows stay in training.
    """
    order = np.lexsort((times, users))
    return _hold_out_last(users, order, lambda n: (1, 1) if n >= 3 else (0, 0))


def column_split(split: ColumnSplit, values: pl.Series, place: Place) -> SplitCodes:
    """A column names the split.

    Raises:
        ValueError: a value belongs to no split; the message gives its row.
    """
    known: dict[str, int] = {}
    for code, names in enumerate((split.train, split.valid, split.test)):
        known.update({str(name): code for name in names})
    text = values.cast(pl.String)
    codes = text.replace_strict(list(known), list(known.values()), default=-1, return_dtype=pl.Int8)
    wrong = (codes < 0).fill_null(value=True).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{place.row(row)}: split column {split.column} holds {values[row]!r}; "
            f"known values are {', '.join(known)}"
        )
    return codes.to_numpy()


def held_out(rows: int, valid: float, test: float, least: int) -> tuple[int, int]:
    """Numbers of validation and test rows out of `rows`; `least` rows stay in training.

    Raises:
        ValueError: the shares leave nothing for training.
    """
    if valid + test >= 1:
        raise ValueError(f"the shares valid={valid} and test={test} leave nothing for training")
    num_test = min(math.floor(rows * test + 0.5), max(rows - least, 0))
    num_valid = min(math.floor(rows * valid + 0.5), max(rows - least - num_test, 0))
    return num_valid, num_test


def asked_for(split: Split) -> tuple[bool, bool, bool]:
    """Which of train, valid and test the declaration asks for."""
    if isinstance(split, FileSplit):
        return True, split.valid is not None or split.valid_share > 0, split.test is not None
    if isinstance(split, ColumnSplit):
        # The names have defaults, so that a column without validation rows is nothing wrong.
        usual = ColumnSplit(column=split.column)
        return (
            True,
            split.valid not in (usual.valid, ()),
            split.test not in (usual.test, ()),
        )
    if isinstance(split, LeaveOneOutSplit):
        return True, True, True
    return True, split.valid > 0, split.test > 0


def check_not_empty(split: Split, rows: NDArray[np.int64]) -> None:
    """Raise ValueError when a split that was asked for has no rows.

    Args:
        split: the declaration.
        rows: [3] rows of train, valid and test.
    """
    for name, wanted, count in zip(NAMES, asked_for(split), rows, strict=True):
        if wanted and not count:
            advice = "change its share (0 for none) or its files"
            if isinstance(split, ColumnSplit):
                values = ", ".join(map(str, getattr(split, name)))
                advice = f"column {split.column} never holds {values}"
            raise ValueError(
                f"the {name} split (kind {split.kind}) is empty: {rows.sum():,} rows gave "
                f"{rows[0]:,} train, {rows[1]:,} valid and {rows[2]:,} test rows; {advice}"
            )


def _hold_out_last(
    groups: Codes, order: NDArray[np.int64], count: Callable[[int], tuple[int, int]]
) -> SplitCodes:
    """Give the last rows of each group, in `order`, to validation and test."""
    codes = np.full(len(groups), TRAIN, dtype=np.int8)
    if not len(groups):
        return codes
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.append(True, sorted_groups[1:] != sorted_groups[:-1]))
    sizes = np.diff(np.append(starts, len(groups)))
    # Groups share few sizes, so the counts are computed once per size.
    distinct, which = np.unique(sizes, return_inverse=True)
    counts = np.array([count(int(size)) for size in distinct], dtype=np.int64)[which]
    from_end = np.repeat(starts + sizes, sizes) - np.arange(len(groups))
    num_valid, num_test = (np.repeat(column, sizes) for column in counts.T)
    sorted_codes = np.full(len(groups), TRAIN, dtype=np.int8)
    sorted_codes[from_end <= num_test + num_valid] = VALID
    sorted_codes[from_end <= num_test] = TEST
    codes[order] = sorted_codes
    return codes


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
