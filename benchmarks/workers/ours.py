"""rankloom: a data set folder, the loader and the training loop as users call them."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from rankloom.evaluation.cost import measure_cost
from rankloom.evaluation.protocol import predict
from rankloom.schema import CategoricalField, Label, Schema
from rankloom.training.config import TrainingConfig
from rankloom.training.loop import train

COST_ROWS = 1_000
"""Rows on which operations are counted."""

NETWORK = {"hidden": shapes.HIDDEN}
CROSSES = NETWORK | {"num_crosses": shapes.CROSS_LAYERS, "structure": {"kind": "parallel"}}
ATTENTION = {
    "num_layers": shapes.ATTENTION_LAYERS,
    "num_heads": shapes.ATTENTION_HEADS,
    "deep": NETWORK,
}
TOWER = {"num_layers": shapes.CROSS_LAYERS, "dropout": 0.0}

SETTINGS: dict[str, dict[str, Any]] = {
    "lr": {},
    "fm": {},
    "dnn": NETWORK,
    "wide_deep": NETWORK,
    "deepfm": NETWORK,
    "ipnn": NETWORK,
    "afm": {"attention_dim": shapes.AFM_ATTENTION_DIM},
    "dcn": NETWORK | {"num_crosses": shapes.CROSS_LAYERS},
    "dcnv2": CROSSES,
    "gdcn": CROSSES,
    "xdeepfm": NETWORK | {"feature_maps": shapes.CIN_LAYERS},
    "autoint": ATTENTION | {"attention_dim": shapes.ATTENTION_DIM},
    "autoint_16": ATTENTION | {"attention_dim": shapes.EMBEDDING_DIM},
    "fibinet": NETWORK | {"bilinear": {"kind": "interaction"}, "reduction": shapes.SENET_REDUCTION},
    "dlrm": {"interaction": {"kind": "dot"}, "top": NETWORK},
    "afn": {"num_neurons": shapes.LOG_NEURONS, "network": NETWORK | {"batch_norm": True}},
    "sam": {
        "interaction": {"kind": "3a", "num_layers": shapes.SAM_LAYERS},
        "aggregation": {"kind": "concat"},
    },
    "edcn": {
        "num_layers": shapes.CROSS_LAYERS,
        "bridge": {"kind": "product"},
        "batch_norm": True,  # without it products of small embeddings do not learn in a short run
    },
    "masknet": {
        "structure": {
            "kind": "parallel",
            "num_blocks": shapes.MASK_BLOCKS,
            "block_width": shapes.MASK_BLOCK_DIM,
            "hidden": shapes.HIDDEN,
        },
        "reduction": shapes.MASK_REDUCTION,
    },
    "finalmlp": {
        "first": NETWORK,
        "second": NETWORK,
        "gates": {"kind": "context", "hidden": shapes.GATE_HIDDEN},
    },
    "finalnet": {
        "blocks": {"kind": "two", "first": NETWORK | {"field_gate": True}, "second": NETWORK}
    },
    "dcnv3": {"deep": TOWER, "shallow": TOWER},
    "wukong": {
        "num_layers": shapes.TOKEN_LAYERS,
        "num_factorized_tokens": shapes.TOKENS,
        "num_compressed_tokens": shapes.TOKENS,
        "rank": shapes.TOKEN_RANK,
        "block": {"hidden": shapes.TOKEN_HIDDEN},
        "head": NETWORK,
    },
    "dlf": {
        "num_layers": shapes.TOKEN_LAYERS,
        "num_tokens": shapes.TOKENS,
        "streams": [
            {"kind": "low_order", "rank": shapes.TOKEN_RANK},
            {"kind": "current_order", "rank": shapes.TOKEN_RANK},
            {"kind": "implicit"},
        ],
    },
    "dlf_code": {
        "num_layers": shapes.TOKEN_LAYERS,
        "num_tokens": shapes.TOKENS,
        "rank": shapes.TOKEN_RANK,
        "block": {"hidden": shapes.TOKEN_HIDDEN},
        "head": NETWORK,
    },
}
"""Case -> what of its model's config the shared sizes decide, beside the embedding's width."""


def build(case: str, schema: Schema) -> nn.Module:
    """The model of a case."""
    entry = lookup(shapes.CASES[case].model)
    width = {} if case == "lr" else {"embedding_dim": shapes.EMBEDDING_DIM}
    config = entry.config.model_validate(width | SETTINGS[case])
    return build_model(entry.name, config, schema)


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


class _OtherData(Exception):  # noqa: N818 - it ends a training run, which is no error
    """Leaves the training loop, to go on with other rows."""


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    dataset = Dataset.open(Path(arguments.folder) / "dataset")
    model = build(arguments.model, dataset.schema)
    settings = TrainingConfig(
        epochs=10_000,
        patience=10_000,
        batch_size=arguments.batch_size,
        learning_rate=shapes.LEARNING_RATE,
        embedding_l2=shapes.EMBEDDING_L2,
        precision=arguments.precision,
        compile=arguments.compile,
        schedule={"kind": "constant"},
        monitor="constant",
        device="cpu",
    )
    channel = Channel()
    start = 0.0

    def infer(current: nn.Module) -> dict[str, float]:
        begin = time.perf_counter()
        loader = Loader(dataset.split("valid"), arguments.batch_size)
        predictions = predict(current, loader, precision=arguments.precision)
        seconds = time.perf_counter() - begin
        auc = roc_auc_score(predictions.labels[:, 0], predictions.logits[:, 0])
        return {"rows": len(predictions.logits), "seconds": seconds, "auc": float(auc)}

    def cost(current: nn.Module) -> dict[str, float]:
        rows = dataset.split("valid")
        return measure_cost(current, rows.slice(0, min(rows.rows, COST_ROWS))).model_dump()

    def parameters(current: nn.Module) -> dict[str, int]:
        return {"parameters": sum(parameter.numel() for parameter in current.parameters())}

    answers = {"infer": infer, "auc": infer, "cost": cost, "parameters": parameters}

    def obey(current: nn.Module) -> None:
        """Do what is asked until an epoch is."""
        nonlocal dataset
        while (request := channel.next()) is not None:
            command, options = request
            if command == "epoch":
                return
            if command == "use":
                dataset = Dataset.open(Path(options["folder"]) / "dataset")
                channel.answer({"rows": dataset.split("train").rows})
                raise _OtherData
            channel.answer(answers[command](current))
        sys.exit()

    def wait(current: nn.Module) -> dict[str, float]:
        """Called by the loop after each epoch: answer, then do what is asked until the next one."""
        nonlocal start
        rows = dataset.split("train").rows
        channel.answer({"rows": rows, "seconds": time.perf_counter() - start})
        obey(current)
        start = time.perf_counter()
        return {"constant": 0.0}

    while True:
        with suppress(_OtherData):
            obey(model)
            start = time.perf_counter()
            rows, seed = dataset.split("train"), arguments.seed
            loader = Loader(rows, arguments.batch_size, shuffle=True, seed=seed)
            train(model, loader, settings, evaluate=wait, seed=seed)


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
