"""From semantic ids to a trained ranking model and its predictions, on a small made-up log."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.data.prepare import prepare
from rankloom.data.sequence_store import SequenceData
from rankloom.data.store import Dataset
from rankloom.data.table_schema import load_table_schema
from rankloom.ranking.histories import target_fields
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.training.experiment import train
from rankloom.training.recipe import Recipe
from rankloom.training.run import Run

NUM_ITEMS, NUM_COLD = 48, 16
DECLARATION = """
name = "log"

[input]
files = "log.csv"

[features.item]
kind = "categorical"

[features.sid]
kind = "semantic_id"
column = "item"
ids = "ids"
items = "shop"

[labels.click]

[[history]]
name = "past"
user = "user"
time = "time"
members = ["item"]
max_length = 5

[split]
kind = "time"
column = "time"
valid = 0.1
test = 0.2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which the first code decides the click; the last items come in its test part."""
    folder = tmp_path_factory.mktemp("semantic")
    generator = np.random.default_rng(0)
    names, nothing = [f"i{number}" for number in range(NUM_ITEMS)], [""] * NUM_ITEMS
    catalogue = Catalogue(names, nothing, nothing, torch.zeros(NUM_ITEMS, 0, dtype=torch.int64))
    histories = Histories(np.empty(0, np.int64), np.zeros(1, np.int64), NUM_ITEMS)
    SequenceData("shop", catalogue, histories, []).save(folder / "shop")
    codes = np.stack([np.arange(NUM_ITEMS) % 4, generator.integers(0, 8, NUM_ITEMS)], axis=1)
    SemanticIds(codes.astype(np.int32), (4, 8), items_hash=catalogue.items_hash).save(
        folder / "ids"
    )
    rows = 3_000
    items = generator.integers(0, NUM_ITEMS - NUM_COLD, rows)
    items[rows * 8 // 10 :] = generator.integers(NUM_ITEMS - NUM_COLD, NUM_ITEMS, rows // 5)
    chance = np.array([0.1, 0.9, 0.2, 0.8])[codes[items, 0]]
    pl.DataFrame(
        {
            "user": generator.integers(0, 40, rows),
            "item": [names[item] for item in items],
            "time": np.arange(rows),
            "click": (generator.random(rows) < chance).astype(np.int64),
        }
    ).write_csv(folder / "log.csv")
    (folder / "schema.toml").write_text(DECLARATION, encoding="utf-8")
    prepare(folder / "schema.toml", folder / "log")
    return folder


def trained(folder: Path, dataset: str, out: Path, **model: Any) -> Run:
    values = {
        "name": "small",
        "dataset": str(folder / dataset),
        "model": model,
        "training": {"epochs": 4, "batch_size": 128, "learning_rate": 0.02},
        "evaluation": {"metrics": ["auc"]},
    }
    return train(Recipe.model_validate(values), out=out)


@pytest.mark.parametrize("name", ["fm", "din"])
def test_cold_items_are_ranked_by_the_prefixes_they_share(
    name: str, folder: Path, tmp_path: Path
) -> None:
    run = trained(folder, "log", tmp_path, name=name, embedding_dim=4)
    assert run.record.metrics["test"]["auc"] > 0.8
    # The same items without their ids are strangers to the model.
    schema = load_table_schema(folder / "schema.toml")
    without = schema.model_copy(update={"features": {"item": schema.features["item"]}})
    prepare(without, tmp_path / "without", root=folder)
    blind = trained(tmp_path, "without", tmp_path / "runs", name=name, embedding_dim=4)
    assert blind.record.metrics["test"]["auc"] < 0.6


def test_predictions_follow_the_prefixes_of_raw_items(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, "log", tmp_path, name="fm", embedding_dim=4)
    # i44 to i47 are cold and have the first codes 0 to 3; the last item is in no catalogue.
    frame = pl.DataFrame({"item": ["i44", "i45", "i46", "i47", "elsewhere", None]})
    low, high, lower, higher, unknown, missing = run.predict(frame)["click"].to_list()
    assert max(low, lower) < min(unknown, missing) <= max(unknown, missing) < min(high, higher)
    past = frame.with_columns(pl.Series("past.item", [["i44", "elsewhere"]] * 6))
    assert run.predict(past)["click"].is_finite().all()


def test_a_history_is_compared_with_the_semantic_id_of_the_row(folder: Path) -> None:
    schema = Dataset.open(folder / "log").schema
    found = target_fields(schema.sequence("past"), schema, {})
    assert found == {"item": "item", "sid": "sid"}
