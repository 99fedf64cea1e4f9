"""The table of items as a catalogue: ids, titles, texts, side fields, vectors."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.data.raw_types import Kind
from rankloom.data.read import open_table
from rankloom.data.sequence_spec import ItemsInput
from rankloom.data.sequence_store import number_values
from rankloom.retrieval.items import Catalogue


class ItemTable:
    """The raw table of items, before items are left out."""

    ids: pl.Series
    """[items] text, all different."""

    def __init__(self, spec: ItemsInput | None, frame: pl.DataFrame, ids: pl.Series) -> None:
        self.ids = ids
        self._spec = spec
        self._frame = frame

    @classmethod
    def read(cls, spec: ItemsInput, root: Path) -> "ItemTable":
        """Read the table.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a column is missing, an item has no id, or two have the same.
        """
        wanted = [spec.id, spec.title, *spec.text, *spec.attributes, spec.vectors]
        columns = list(dict.fromkeys(name for name in wanted if name is not None))
        kinds: dict[str, Kind] = dict.fromkeys((spec.id, *spec.attributes), "category")
        table = open_table(spec, root, kinds=kinds)
        frame = table.collect(columns)
        name = ", ".join(path.name for path in table.files)
        ids = frame[spec.id]
        if ids.dtype.is_nested():
            raise ValueError(f"{name}: column {spec.id} holds lists; an id is a number or a text")
        if ids.null_count():
            row = int(ids.is_null().arg_true()[0]) + 1
            raise ValueError(f"{name}: row {row:,}: column {spec.id} has no value")
        if ids.dtype.is_float():
            whole = ids.filter(ids != ids.floor())
            if len(whole):
                raise ValueError(f"{name}: column {spec.id} holds {whole[0]}, which is no id")
            ids = ids.cast(pl.Int64)
        text = ids.cast(pl.String)
        double = text.filter(text.is_duplicated())
        if len(double):
            raise ValueError(
                f"{name}: item ids must differ; {double.n_unique():,} are there several times, "
                f"such as {double[0]!r}"
            )
        return cls(spec, frame, text)

    @classmethod
    def of_ids(cls, ids: pl.Series) -> "ItemTable":
        """Items of which nothing but the id is known."""
        return cls(None, pl.DataFrame({"id": ids}), ids)

    def catalogue(self, rows: npt.NDArray[np.int64]) -> Catalogue:
        """The catalogue of some of the items.

        Args:
            rows: [items] their rows, in order.

        Raises:
            ValueError: the vectors are missing somewhere, or differ in width.
        """
        frame, ids = self._frame[rows], self.ids.gather(rows)
        spec = self._spec
        title = None if spec is None else spec.title
        texts = () if spec is None else spec.text
        names = () if spec is None else spec.attributes
        nothing = [""] * len(ids)
        sentences = (
            frame.select(
                pl.concat_str(
                    [_sentence(frame, name) for name in texts], separator=" ", ignore_nulls=True
                ).alias("text")
            )["text"]
            if texts
            else pl.Series(nothing)
        )
        titles = frame.select(_plain_text(frame, title).fill_null(""))[title] if title else None
        numbered = [number_values(_first_value(frame, name)) for name in names]
        columns = [torch.from_numpy(numbers) for _, numbers in numbered]
        return Catalogue(
            ids=ids.to_list(),
            titles=nothing if titles is None else titles.to_list(),
            texts=sentences.to_list(),
            attributes=torch.stack(columns, 1) if columns else torch.zeros(len(ids), 0).long(),
            attribute_names=names,
            attribute_labels=tuple(labels for labels, _ in numbered),
            vectors=_vectors(frame, ids, None if spec is None else spec.vectors),
        )


def _plain_text(frame: pl.DataFrame, column: str) -> pl.Expr:
    """A column as text on one line; missing where nothing is left of it."""
    text = pl.col(column)
    if frame.schema[column].is_nested():
        text = text.cast(pl.List(pl.String)).list.drop_nulls().list.join(" ")
    text = text.cast(pl.String).str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(text != "").then(text).alias(column)


def _sentence(frame: pl.DataFrame, column: str) -> pl.Expr:
    """A column's text with a full stop, where it does not end a sentence by itself."""
    text = _plain_text(frame, column)
    return pl.when(text.str.contains(r"[.!?]$")).then(text).otherwise(text + ".")


def _first_value(frame: pl.DataFrame, column: str) -> pl.Series:
    """A side field as text: the value, or the first of a list."""
    if not frame.schema[column].is_nested():
        return frame.select(_plain_text(frame, column))[column]
    first = frame.select(pl.col(column).list.first())
    return first.select(_plain_text(first, column))[column]


def _vectors(
    frame: pl.DataFrame, ids: pl.Series, column: str | None
) -> Float[Tensor, "items width"] | None:
    if column is None:
        return None
    lists = frame[column]
    if not isinstance(lists.dtype, pl.List):
        raise ValueError(f"column {column} must hold lists of numbers; got {lists.dtype}")
    widths = lists.list.len()
    width = int(widths[0] or 0) if len(widths) else 0
    other = (widths.fill_null(0) != width).arg_true()
    if len(other) or not width:
        row = int(other[0]) if len(other) else 0
        raise ValueError(
            f"every item needs a vector of the same width; in column {column}, item {ids[0]!r} has "
            f"{width} numbers, item {ids[row]!r} has {widths[row] or 0}"
        )
    numbers = lists.explode().cast(pl.Float32)
    missing = numbers.is_null() | numbers.is_nan()
    if missing.any():
        row = int(missing.arg_true()[0]) // width
        raise ValueError(f"column {column}: the vector of item {ids[row]!r} has a missing number")
    return torch.from_numpy(numbers.to_numpy().reshape(len(ids), width).copy())
