"""A small planted catalogue with sequences, and recipes of it that run in a second."""

from pathlib import Path
from typing import Any

import torch

from rankloom.data.sequence_store import SequenceData
from rankloom.data.synthetic_items import synthetic_sequences
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue
from rankloom.training.retrieval_recipe import RetrievalRecipe

SMALL = {"dim": 16, "num_layers": 1, "num_heads": 2}
DECODER = {"name": "decoder", **SMALL, "dropout": 0.0, "network": {"hidden_dim": 32}}


def toy_data(folder: Path) -> Path:
    """Forty items in six clusters, a hundred users; the data set's folder."""
    data = synthetic_sequences(40, 100, branching=(2, 3), mean_length=7, max_length=12, seed=1)
    data.save(folder / "data")
    return folder / "data"


def toy_recipe(dataset: Path, **changes: Any) -> RetrievalRecipe:
    """A generator on residual k-means; every table can be replaced."""
    values: dict[str, Any] = {
        "name": "toy",
        "dataset": str(dataset),
        "seed": 2,
        "items": {"kind": "tfidf", "dim": 8},
        "tokenizer": {"kind": "rq_kmeans", "level_sizes": [6, 5]},
        "model": DECODER,
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
        "evaluation": {"cutoffs": [5, 10], "beams": 12},
    }
    values |= changes
    return RetrievalRecipe.model_validate({k: v for k, v in values.items() if v is not None})


def scorer(dataset: Path, **changes: Any) -> RetrievalRecipe:
    """SASRec, without semantic ids."""
    model = {"name": "sasrec", **SMALL}
    return toy_recipe(dataset, **{"model": model, "tokenizer": None} | changes)


def longer(data: SequenceData, new: int = 3) -> SequenceData:
    """The data set with copies of its first items after them, under new ids."""
    old = data.catalogue
    catalogue = Catalogue(
        ids=[*old.ids, *(f"new{number}" for number in range(new))],
        titles=[*old.titles, *(f"New {number}" for number in range(new))],
        texts=[*old.texts, *(old.texts[number] for number in range(new))],
        attributes=torch.cat([old.attributes, old.attributes[:new]]),
        attribute_names=old.attribute_names,
        attribute_labels=old.attribute_labels,
        vectors=None if old.vectors is None else torch.cat([old.vectors, old.vectors[:new]]),
    )
    histories = Histories(data.histories.items, data.histories.offsets, catalogue.num_items)
    return SequenceData(data.name, catalogue, histories, data.users)
