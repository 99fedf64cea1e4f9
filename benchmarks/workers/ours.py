"""rankloom: a data set folder, the loader and the training loop as users call them."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks import shapes
from benchmarks.worker import Channel
from rankloom import __version__
from rankloom.catalog import build_model, lookup
from rankloom.data.columns import Columns
from rankloom.data.loader import Loader
from rankloom.data.store import Dataset, Manifest, SplitWriter, write_manifest
from rankloom.data.table_schema import Categorical, LabelSpec, TableInput, TableSchema
from rankloom.evaluation.protocol import predict
from rankloom.schema import CategoricalField, Label, Schema
from rankloom.training.config import TrainingConfig
from rankloom.training.loop import train

SETTINGS = {
    "lr": {},
    "fm": {"embedding_dim": shapes.EMBEDDING_DIM},
    "deepfm": {"embedding_dim": shapes.EMBEDDING_DIM, "hidden": shapes.HIDDEN},
    "dcnv2": {
        "embedding_dim": shapes.EMBEDDING_DIM,
        "hidden": shapes.HIDDEN,
        "num_crosses": shapes.CROSS_LAYERS,
        "structure": {"kind": "parallel"},
    },
}


def schema() -> Schema:
    """39 id fields, each with its own table."""
    sizes = shapes.cardinalities()
    return Schema(
        tables={f"C{field + 1}": size + 2 for field, size in enumerate(sizes)},
        categorical=tuple(
            CategoricalField(name=f"C{field + 1}", table=f"C{field + 1}")
            for field in range(shapes.NUM_FIELDS)
        ),
        labels=(Label(name="label"),),
    )


def write_dataset(folder: Path) -> None:
    """The shared rows as a data set folder, with tables of exactly the shared sizes."""
    target = folder / "dataset"
    target.mkdir(exist_ok=True)
    fitted = schema()
    splits, files = {}, {}
    for split in ("train", "valid"):
        data = np.load(folder / f"{split}.npz")
        writer = SplitWriter(target, split, fitted)
        writer.append(
            Columns(
                # Ids count from 1 there; 0 and 1 are reserved here.
                categorical=np.stack(
                    [data[field.name] + 1 for field in fitted.categorical], axis=1
                ).astype(np.int32),
                numeric=np.empty((len(data["label"]), 0), np.float32),
                labels=data["label"].astype(np.float32)[:, None],
            )
        )
        splits[split] = writer.close()
        files |= writer.files
    declared = TableSchema(
        name="criteo-shaped",
        input=TableInput(files="none"),
        features={field.name: Categorical() for field in fitted.categorical},
        labels={"label": LabelSpec()},
    )
    manifest = Manifest(
        rankloom_version=__version__,
        name="criteo-shaped",
        declared=declared,
        fitted=fitted,
        splits=splits,
        files=files,
    )
    write_manifest(target, manifest)


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    dataset = Dataset.open(Path(arguments.folder) / "dataset")
    entry = lookup(arguments.model)
    config = entry.config.model_validate(SETTINGS[arguments.model])
    model = build_model(arguments.model, config, dataset.schema)
    settings = TrainingConfig(
        epochs=10_000,
        patience=10_000,
        batch_size=shapes.BATCH_SIZE,
        learning_rate=shapes.LEARNING_RATE,
        embedding_l2=shapes.EMBEDDING_L2,
        precision=arguments.precision,
        compile=arguments.compile,
        schedule={"kind": "constant"},
        monitor="constant",
        device="cpu",
    )
    channel = Channel()
    training_rows = dataset.split("train").rows
    start = 0.0

    def infer(current: nn.Module) -> dict[str, float]:
        begin = time.perf_counter()
        loader = Loader(dataset.split("valid"), shapes.BATCH_SIZE)
        predictions = predict(current, loader, precision=arguments.precision)
        seconds = time.perf_counter() - begin
        auc = roc_auc_score(predictions.labels[:, 0], predictions.logits[:, 0])
        return {"rows": len(predictions.logits), "seconds": seconds, "auc": float(auc)}

    def wait(current: nn.Module) -> dict[str, float]:
        """Called by the loop after each epoch: answer, then do what is asked until the next one."""
        nonlocal start
        channel.answer({"rows": training_rows, "seconds": time.perf_counter() - start})
        while (command := channel.next()) != "epoch":
            if command is None:
                sys.exit()
            channel.answer(infer(current))
        start = time.perf_counter()
        return {"constant": 0.0}

    if channel.next() is None:
        return
    start = time.perf_counter()
    loader = Loader(dataset.split("train"), shapes.BATCH_SIZE, shuffle=True, seed=arguments.seed)
    train(model, loader, settings, evaluate=wait, seed=arguments.seed)


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
