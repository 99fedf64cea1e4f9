"""Where one model gains over another: rows by how often training saw their features.

A row's frequency is a statistic of the training counts of its categorical ids. The rows of a split
are sorted by it and cut into ten groups of about equal size; in each the two models are compared on
the same rows, with DeLong's test and Holm's correction over the groups.

Training counts of an id:

- kept values: their count in the data set's vocabulary, over all columns that share the table;
- tables without such counts (hashed, binned, or read from an entity table): the train split is
  counted, over the categorical columns that share the table;
- out-of-vocabulary: 0, as training kept nothing of the value;
- missing: left out of the statistic; a row without any value has frequency 0.

Numeric, vector and sequence fields do not enter.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from rankloom.config import Config
from rankloom.data.encode import Fitted
from rankloom.data.store import Dataset, StoredSplit
from rankloom.evaluation.metrics import FloatArray, auc, log_loss
from rankloom.evaluation.significance import delong_test, holm
from rankloom.runs.record import Number
from rankloom.schema import NUM_RESERVED, OUT_OF_VOCABULARY, PADDING

NUM_GROUPS = 10
"""Groups of rows."""
BLOCK_ROWS = 1 << 16
"""Rows read at a time."""


class Decile(Config):
    """Both models on the rows of one tenth."""

    number: int = Field(ge=1, le=NUM_GROUPS)
    """1 holds the rarest rows."""
    low: float
    """Smallest frequency of its rows."""
    high: float
    """Largest frequency of its rows."""
    rows: int
    """Rows with a known label."""
    positives: int
    """Rows of them with label 1."""
    auc: Number
    """AUC of the model."""
    other_auc: Number
    """AUC of the other model."""
    auc_difference: Number
    """The model's AUC less the other's."""
    auc_low: Number
    """Lower end of DeLong's 95% interval of the difference."""
    auc_high: Number
    """Upper end of it."""
    p_value: Number
    """DeLong's test, two-sided."""
    p_adjusted: Number
    """The same after Holm's correction over the deciles."""
    log_loss: Number
    """LogLoss of the model."""
    other_log_loss: Number
    """LogLoss of the other model."""
    log_loss_difference: Number
    """The model's LogLoss less the other's: below 0 it is better."""


def training_counts(dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """Training count of every id of every categorical field, [ids of its table].

    The rules stand in the module's docstring. Padding has 0 here.

    Raises:
        FileNotFoundError: the folder lacks a vocabulary, or it has no transforms.
        ValueError: a vocabulary is damaged, or the train split is needed and is not there.
    """
    schema = dataset.schema
    fitted = Fitted.load(dataset.folder)
    from_entities = {field.table for field in schema.categorical if field.entity is not None}
    by_table: dict[str, NDArray[np.int64]] = {}
    for table in dict.fromkeys(field.table for field in schema.categorical):
        if table in fitted.vocabularies and table not in from_entities:
            counts = np.zeros(schema.tables[table], np.int64)
            counts[NUM_RESERVED:] = fitted.vocabularies[table].counts
            by_table[table] = counts
    by_table |= _counted(dataset, {f.table for f in schema.categorical} - by_table.keys())
    return {field.name: by_table[field.table] for field in schema.categorical}


def row_frequency(
    split: StoredSplit, counts: dict[str, NDArray[np.int64]], statistic: str = "min"
) -> FloatArray:
    """The frequency of every row of a split, [rows].

    Args:
        split: the rows.
        counts: as `training_counts` gives them.
        statistic: `min`, the count of the row's rarest id; `mean`, the mean over its ids; or the
            name of a categorical field, the count of that field's id.

    Raises:
        ValueError: no categorical field, or another statistic.
    """
    names = [field.name for field in split.schema.categorical]
    if not names:
        raise ValueError("rows have no feature frequency: the data set has no categorical field")
    if statistic not in ("min", "mean", *names):
        raise ValueError(
            f"frequency must be min, mean or a categorical field ({', '.join(names)}); "
            f"got {statistic!r}"
        )
    columns = [names.index(statistic)] if statistic in names else list(range(len(names)))
    parts = []
    for ids in _id_blocks(split):  # [rows, fields]
        present = ids[:, columns] != PADDING
        values = np.stack([counts[names[c]][ids[:, c]] for c in columns], axis=1)
        if statistic == "mean":
            found = (values * present).sum(1) / np.maximum(present.sum(1), 1)
        else:
            found = np.where(present, values, np.iinfo(np.int64).max).min(1)
        parts.append(np.where(present.any(1), found, 0).astype(np.float64))
    return np.concatenate(parts) if parts else np.empty(0)


def frequency_groups(frequency: ArrayLike) -> NDArray[np.int64]:
    """The tenth that each row belongs to, [rows] in 0..9, the rarest first.

    Rows of one frequency stay together: they all go where the middle one of them falls. So tenths
    differ in size, and one may be empty.
    """
    values = np.asarray(frequency, np.float64)
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2
    return (middle * NUM_GROUPS / max(len(values), 1)).astype(np.int64)[inverse]


def compare_by_frequency(
    labels: ArrayLike, logits: ArrayLike, other_logits: ArrayLike, frequency: ArrayLike
) -> list[Decile]:
    """Two models on rows of rising frequency.

    Args:
        labels: [rows], 0 or 1; NaN where the label is not known. Such rows help to cut the groups
            and count for nothing else.
        logits: [rows], of the model.
        other_logits: [rows], of the model it is compared with.
        frequency: [rows].

    Returns:
        The groups that hold a row with a known label, rarest first. What a group of one class does
        not define is NaN. Rows count once each, whatever their weight.

    Raises:
        ValueError: shapes differ, or an input is not what it should be.
    """
    y, ours, theirs, f = (np.asarray(a) for a in (labels, logits, other_logits, frequency))
    if y.ndim != 1 or any(a.shape != y.shape for a in (ours, theirs, f)):
        shapes = ", ".join(str(a.shape) for a in (y, ours, theirs, f))
        raise ValueError(f"labels, both logits and frequency must be [rows]; got {shapes}")
    groups = frequency_groups(f)
    known = ~np.isnan(y)
    deciles = []
    for number in range(NUM_GROUPS):
        rows = np.flatnonzero((groups == number) & known)
        if len(rows):
            values = _figures(y[rows], ours[rows], theirs[rows])
            low, high = float(f[rows].min()), float(f[rows].max())
            deciles.append({"number": number + 1, "low": low, "high": high, **values})
    adjusted = holm([values["p_value"] for values in deciles])
    return [
        Decile.model_validate({**values, "p_adjusted": float(p)})
        for values, p in zip(deciles, adjusted, strict=True)
    ]


def _figures(y: FloatArray, ours: FloatArray, theirs: FloatArray) -> dict[str, float]:
    test = delong_test(y, ours, theirs)
    losses = log_loss(y, ours), log_loss(y, theirs)
    return {
        "rows": len(y),
        "positives": int((y == 1).sum()),
        "auc": auc(y, ours),
        "other_auc": auc(y, theirs),
        "auc_difference": test.difference,
        "auc_low": test.low,
        "auc_high": test.high,
        "p_value": test.p_value,
        "log_loss": losses[0],
        "other_log_loss": losses[1],
        "log_loss_difference": losses[0] - losses[1],
    }


def _counted(dataset: Dataset, tables: set[str]) -> dict[str, NDArray[np.int64]]:
    """Counts of the ids of some tables in the train split."""
    if not tables:
        return {}
    if "train" not in dataset.splits:
        raise ValueError(
            f"{dataset.folder} has no train split to count the ids of {', '.join(sorted(tables))}"
        )
    schema = dataset.schema
    counts = {table: np.zeros(schema.tables[table], np.int64) for table in tables}
    for ids in _id_blocks(dataset.split("train")):
        for column, field in enumerate(schema.categorical):
            if field.table in tables:
                found = np.bincount(ids[:, column], minlength=schema.tables[field.table])
                counts[field.table] += found
    for values in counts.values():
        values[[PADDING, OUT_OF_VOCABULARY]] = 0
    return counts


def _id_blocks(split: StoredSplit) -> Iterator[NDArray[np.int32]]:
    """Categorical ids of all rows in order, [rows, fields] at a time."""
    for start in range(0, split.rows, BLOCK_ROWS):
        rows = torch.arange(start, min(start + BLOCK_ROWS, split.rows), device=split.device)
        yield split.gather(rows).categorical.cpu().numpy()
