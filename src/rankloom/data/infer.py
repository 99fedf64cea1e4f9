"""Propose a declaration for a raw table, with the reasons as comments, for a person to edit."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import tomli_w

from rankloom.data.read import RawTable, open_table
from rankloom.data.table_schema import TableInput

SAMPLE_ROWS = 100_000
"""Rows looked at."""
LABEL_NAME = re.compile(r"(^|_)(labels?|clicks?|clicked|targets?|conversions?|is_click|cvr|ctr)$")
RATING_NAME = re.compile(r"(^|_)(ratings?|stars|score)$")
TIME_NAME = re.compile(r"(^|_)(time|timestamp|date|datetime|ts)$")
ID_NAME = re.compile(r"(^|_)(id|uid|iid|user|item|code)$|id$")
USER_NAME = re.compile(r"^(user|uid|user_?id|member_?id)$")
FEW_VALUES = 64
"""A number with at most this many distinct values is taken for a category."""
LONG_TEXT = 40
"""Mean characters from which distinct texts are taken for free text."""


@dataclass(frozen=True)
class Proposal:
    """What one column is taken for."""

    section: str
    """`features`, `labels`, `time`, `unused`."""
    values: dict[str, str | int | float]
    """Settings of the feature or label."""
    reason: str
    """Why, as one comment line."""


def infer_schema(table: TableInput, root: Path, name: str) -> str:
    """Propose a declaration as annotated TOML, which `load_table_schema` reads back.

    Args:
        table: files and format.
        root: folder that relative paths start from.
        name: name of the data set.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the table cannot be read, has no rows, or no column is left for a feature.
    """
    raw = open_table(table, root)
    sample = _sample(raw)
    proposals = {column: _propose(column, sample[column]) for column in sample.columns}
    if not any(proposal.section == "labels" for proposal in proposals.values()):
        _choose_label(sample, proposals)
    features = [column for column, found in proposals.items() if found.section == "features"]
    labels = [column for column, found in proposals.items() if found.section == "labels"]
    if not features or not labels:
        missing = "feature" if not features else "label (a 0/1 column or a rating)"
        raise ValueError(
            f"{raw.files[0].name}: no column looks like a {missing}; its columns are "
            f"{', '.join(sample.columns)}"
        )
    lines = [
        f"# Proposed from the first {sample.height:,} rows; check every line.",
        tomli_w.dumps({"name": name}).strip(),
        "",
        "[input]",
        tomli_w.dumps(table.model_dump(mode="json", exclude_defaults=True)).strip(),
    ]
    for section in ("labels", "features"):
        for column, found in proposals.items():
            if found.section == section:
                lines += ["", f"# {_comment(found.reason)}", f"[{section}.{_key(column)}]"]
                lines += tomli_w.dumps(found.values).strip().splitlines()
    lines += _roles_and_split(sample, proposals)
    for column, found in proposals.items():
        if found.section == "unused":
            lines += ["", f"# Left out: {_comment(column)}: {_comment(found.reason)}"]
    return "\n".join(lines) + "\n"


def _sample(raw: RawTable) -> pl.DataFrame:
    parts: list[pl.DataFrame] = []
    rows = 0
    for chunk in raw.chunks(rows=SAMPLE_ROWS):
        parts.append(chunk.head(SAMPLE_ROWS - rows))
        rows += parts[-1].height
        if rows >= SAMPLE_ROWS:
            break
    if not rows:
        raise ValueError(f"{raw.files[0].name} has no rows")
    return pl.concat(parts)


def _propose(column: str, cells: pl.Series) -> Proposal:
    name = column.lower()
    known = cells.drop_nulls()
    if not len(known):
        return Proposal("unused", {}, "every value is missing")
    if cells.dtype.is_nested():
        return _propose_list(known)
    distinct = known.n_unique()
    missing = f", {cells.null_count() / len(cells):.1%} missing" if cells.null_count() else ""
    seen = f"{distinct:,} distinct values{missing}"
    if distinct == 1:
        return Proposal("unused", {}, f"it always holds {known[0]!r}{missing}")
    binary = _is_binary(known)
    masked: dict[str, str | int | float] = {"allow_missing": True} if cells.null_count() else {}
    if binary and LABEL_NAME.search(name):
        return Proposal("labels", masked, f"its name is a label's and it holds 0 and 1{missing}")
    if cells.dtype.is_numeric() and not binary and RATING_NAME.search(name):
        low, high = _range(known)
        threshold = math.ceil(0.75 * high) if cells.dtype == pl.Int64 else round(0.75 * high, 2)
        reason = f"a rating from {low:g} to {high:g}; the threshold is a guess"
        return Proposal("labels", {**masked, "threshold": threshold}, reason)
    if cells.dtype.is_numeric() and TIME_NAME.search(name):
        return Proposal("time", {}, f"its name is a time's and it holds numbers; {seen}")
    if name == "split" and distinct <= 3:
        reason = f"it seems to name each row's split ({seen}); use it with [split] kind = column"
        return Proposal("unused", {}, reason)
    if distinct == len(cells) > FEW_VALUES and not cells.dtype.is_float():
        return Proposal("unused", {}, "every row has a value of its own, nothing to learn from")
    if cells.dtype == pl.String:
        return _propose_text(name, known, seen)
    if ID_NAME.search(name):
        return _categorical(distinct, f"its name is an id's; {seen}")
    if cells.dtype == pl.Int64 and distinct <= FEW_VALUES:
        return _categorical(distinct, f"whole numbers with few values; {seen}")
    transform = "log" if cells.dtype == pl.Int64 else "standardise"
    low, high = _range(known)
    reason = f"numbers from {low:g} to {high:g}; {seen}"
    return Proposal("features", {"kind": "numeric", "transform": transform}, reason)


def _propose_text(name: str, known: pl.Series, seen: str) -> Proposal:
    distinct = known.n_unique()
    if TIME_NAME.search(name):
        reason = f"a time as text; make a timestamp of it with [[derive]] (format iso); {seen}"
        return Proposal("unused", {}, reason)
    for separator in ("|", ";", ","):
        several = known.str.contains(separator, literal=True)
        parts = known.str.split(separator).explode().n_unique()
        if several.sum() >= 0.2 * len(known) and parts < max(2, distinct):
            reason = f"several values per cell, parted by {separator!r}; {parts:,} distinct parts"
            return Proposal("features", {"kind": "sequence", "separator": separator}, reason)
    length = known.str.len_chars().mean()
    if distinct > FEW_VALUES and isinstance(length, float) and length >= LONG_TEXT:
        return Proposal("features", {"kind": "text"}, f"long texts; {seen}")
    return _categorical(distinct, f"text; {seen}")


def _propose_list(known: pl.Series) -> Proposal:
    lengths = known.list.len()
    inner = known.explode().dtype
    low, high = int(lengths.min() or 0), int(lengths.max() or 0)  # type: ignore[arg-type]
    if inner.is_float() and low == high > 0:
        values: dict[str, str | int | float] = {"kind": "vector", "width": high}
        return Proposal("features", values, f"lists of {high} numbers")
    if inner.is_nested() or inner.is_float() or high == 0:
        return Proposal("unused", {}, f"lists of {inner} of {low} to {high} elements")
    values = {"kind": "sequence", "max_length": max(high, 1)}
    return Proposal("features", values, f"lists of {low} to {high} values")


def _is_binary(known: pl.Series) -> bool:
    return known.dtype.is_numeric() and bool(((known == 0) | (known == 1)).all())


def _range(known: pl.Series) -> tuple[float, float]:
    numbers = known.cast(pl.Float64).to_numpy()
    return float(numbers.min()), float(numbers.max())


def _categorical(distinct: int, reason: str) -> Proposal:
    values: dict[str, str | int | float] = {"kind": "categorical"}
    if distinct > 1000:
        values["min_count"] = 2
        reason += "; rare values are left to the out-of-vocabulary entry"
    return Proposal("features", values, reason)


def _choose_label(sample: pl.DataFrame, proposals: dict[str, Proposal]) -> None:
    """Without a telling name, the first complete 0/1 column becomes the label."""
    for column, found in proposals.items():
        cells = sample[column]
        if found.section != "features" or cells.null_count():
            continue
        if _is_binary(cells):
            reason = "no column has a label's name; this is the first that holds 0 and 1 only"
            proposals[column] = Proposal("labels", {}, reason)
            return


def _roles_and_split(sample: pl.DataFrame, proposals: dict[str, Proposal]) -> list[str]:
    times = [column for column, found in proposals.items() if found.section == "time"]
    users = [
        column
        for column, found in proposals.items()
        if found.section == "features" and USER_NAME.search(column.lower())
    ]
    lines: list[str] = []
    roles: dict[str, str] = {}
    if users:
        roles["group"] = users[0]
    whole = [column for column in times if sample[column].dtype == pl.Int64]
    if whole:
        roles["time"] = whole[0]
    if roles:
        lines += [
            "",
            "# group: the user, for GAUC. time: whole numbers that order rows.",
            "[roles]",
        ]
        lines += tomli_w.dumps(roles).strip().splitlines()
    complete = [column for column in times if not sample[column].null_count()]
    if complete:
        split: dict[str, str | float] = {"kind": "time", "column": complete[0]}
        reason = "There is a time, and a model is used on later rows than it learnt from."
    else:
        split = {"kind": "random", "seed": 0}
        reason = "No complete time column was found, so that rows are drawn."
    split |= {"valid": 0.1, "test": 0.1}
    return [*lines, "", f"# {reason}", "[split]", *tomli_w.dumps(split).strip().splitlines()]


def _key(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return tomli_w.dumps({name: 0}).rpartition(" = ")[0]


def _comment(text: str) -> str:
    """One line without control characters."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)
