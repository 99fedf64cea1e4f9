"""A finished run: its record, its model, and what one does with them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rankloom.data.encode import Encoder
from rankloom.data.frames import like, to_polars
from rankloom.data.loader import Loader
from rankloom.data.read import open_table
from rankloom.data.store import Dataset, StoredSplit
from rankloom.data.switch_off import SwitchOff
from rankloom.data.table_schema import TableInput
from rankloom.evaluation.protocol import (
    Evaluation,
    EvaluationConfig,
    Predictions,
    evaluate,
    predict,
)
from rankloom.runs.atomic import replacing
from rankloom.runs.record import Record, read_record
from rankloom.training.loop import select_device
from rankloom.training.recipe import Recipe, load_recipe

MODEL_FILE = "model.safetensors"
"""Best weights, in a run folder."""
RECIPE_FILE = "recipe.toml"
"""The recipe, in a run folder."""
PREDICTION_ROWS = 1 << 16
"""Rows encoded and scored at a time when a table is predicted."""


class Run:
    """A finished run folder.

    Args:
        folder: the run folder.
        record: its record.
        recipe: its recipe.
        dataset: the data set it was trained on, or the folder of that data set.
    """

    def __init__(
        self, folder: Path, record: Record, recipe: Recipe, dataset: Dataset | Path
    ) -> None:
        self.folder = folder
        self.record = record
        self.recipe = recipe
        self._dataset = dataset

    @classmethod
    def open(cls, folder: str | Path, *, dataset: Dataset | str | Path | None = None) -> "Run":
        """Open a run folder.

        Args:
            folder: the run folder.
            dataset: its data set, or where that lies now; None: where the recipe says.

        Raises:
            FileNotFoundError: it holds no record (the run is not finished).
            ValueError: the record or the recipe is not readable.
        """
        path = Path(folder)
        record = read_record(path)
        recipe = load_recipe(path / RECIPE_FILE)
        if dataset is None:
            dataset = Path(recipe.dataset)
        return cls(path, record, recipe, dataset if isinstance(dataset, Dataset) else Path(dataset))

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, checked to be the one the run was trained on.

        Raises:
            FileNotFoundError: it is not where the recipe says.
            ValueError: it is another one.
        """
        if isinstance(self._dataset, Dataset):
            opened = self._dataset
        else:
            opened = Dataset.open(self._dataset)
        if opened.data_hash != self.record.dataset.data_hash:
            raise ValueError(
                f"{opened.folder} is not the data set of {self.folder}: its hash is "
                f"{opened.data_hash}, the run was trained on {self.record.dataset.data_hash}"
            )
        return opened

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return select_device(self.recipe.training.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its best weights, in evaluation mode.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: the weights are damaged.
        """
        model = self.recipe.entry().build(self.recipe.settings(), self.dataset.schema)
        path = self.folder / MODEL_FILE
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; train the recipe anew") from None
        model.load_state_dict(weights)
        return model.to(self.device).eval()

    def evaluate(
        self,
        split: str = "test",
        *,
        metrics: Sequence[str] | None = None,
        switched_off: Sequence[str] | None = None,
    ) -> Evaluation:
        """Metrics on a split of the data set.

        Args:
            split: name of the split.
            metrics: names of metrics; None: the recipe's.
            switched_off: fields that the model is not given; None: the recipe's.

        Raises:
            ValueError: no such split, a metric that is unknown or not to be had, or no such field.
        """
        if split not in self.dataset.splits:
            known = ", ".join(self.dataset.splits)
            raise ValueError(f"no split {split!r} in {self.dataset.folder}; known: {known}")
        values = self.recipe.evaluation.model_dump()
        if metrics is not None:
            values["metrics"] = tuple(metrics)
        if switched_off is not None:
            values["switched_off"] = tuple(switched_off)
        config = EvaluationConfig.model_validate(values)
        recipe = self.recipe.model_copy(update={"evaluation": config})
        predictions = score(self.model, self.dataset.split(split), recipe, self.device)
        return evaluate(predictions, self.dataset.schema, config)

    def predict(self, frame: Any) -> Any:
        """Score raw rows.

        Args:
            frame: polars, pandas or pyarrow table, or a dictionary of columns, with the feature
                columns of the data set's table schema; histories as list columns
                `<history>.<member>`. Values never seen in training are out-of-vocabulary, a
                scenario never seen is scenario 0. Fields that the recipe's evaluation switches
                off are switched off here too.

        Returns:
            The same kind of frame, one row per row and in the same order, with one column of
            probabilities per task.

        Raises:
            TypeError: `frame` is no frame.
            ValueError: a column is missing or holds what it cannot.
        """
        return like(self._score(to_polars(frame)), frame)

    def predict_table(self, table: str | TableInput, out: str | Path) -> int:
        """Score a raw table of any size into a Parquet file, a block of rows at a time.

        Args:
            table: path or glob of the raw table, or its full description.
            out: Parquet file to write: one column of probabilities per task, in row order.

        Returns:
            The number of rows.

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: as `predict`.
        """
        spec = table if isinstance(table, TableInput) else TableInput(files=table)
        scores = [
            self._score(chunk) for chunk in open_table(spec, Path()).chunks(rows=PREDICTION_ROWS)
        ]
        result = pl.concat(scores) if scores else self._score(pl.DataFrame())
        with replacing(out) as partial:
            result.write_parquet(partial)
        return result.height

    @cached_property
    def _switch_off(self) -> SwitchOff:
        return SwitchOff(self.dataset.schema, self.recipe.evaluation.switched_off)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder.load(self.dataset.folder)

    def _score(self, frame: pl.DataFrame) -> pl.DataFrame:
        batch = self.dataset.batch(self._encoder.encode(frame)).to(self.device)
        precision = self.recipe.training.precision
        batches = map(self._switch_off, [batch])
        logits = predict(self.model, batches, precision=precision, device=self.device).logits
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
        names = [label.name for label in self.dataset.schema.labels]
        return pl.DataFrame({name: probabilities[:, i] for i, name in enumerate(names)})


def score(
    model: nn.Module, split: StoredSplit, recipe: Recipe, device: torch.device
) -> Predictions:
    """Predictions of all rows of a split, in file order, as the recipe evaluates them.

    Raises:
        ValueError: a field that the recipe switches off is none of the split.
    """
    loader = Loader(split, recipe.training.evaluation_batch_size, device=str(device))
    batches = map(SwitchOff(split.schema, recipe.evaluation.switched_off), loader)
    return predict(model, batches, precision=recipe.training.precision, device=device)
