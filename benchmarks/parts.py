"""The parts alone: shuffled loading, and GAUC of a million rows in 100,000 groups."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe_machine

LOADER_ROWS = 4_000_000
LOADER_FIELDS = 39
BATCH_SIZE = 10_000
GAUC_ROWS = 1_000_000
GAUC_GROUPS = 100_000


def loader_rates(rounds: int) -> dict[str, list[float]]:
    """Rows per second of the loader, and of a bare index_select on the same mapped file."""
    from rankloom.data.columns import Columns
    from rankloom.data.loader import Loader
    from rankloom.data.store import Dataset, Manifest, SplitWriter, write_manifest
    from rankloom.data.table_schema import Categorical, LabelSpec, TableInput, TableSchema
    from rankloom.schema import CategoricalField, Label, Schema

    names = [f"C{i}" for i in range(LOADER_FIELDS)]
    schema = Schema(
        tables=dict.fromkeys(names, 100000),
        categorical=tuple(CategoricalField(name=name, table=name) for name in names),
        labels=(Label(name="label"),),
    )
    random = np.random.default_rng(0)
    result: dict[str, list[float]] = {"loader": [], "index_select": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = SplitWriter(folder, "train", schema)
        for _ in range(LOADER_ROWS // 1_000_000):
            writer.append(
                Columns(
                    categorical=random.integers(0, 100_000, (1_000_000, LOADER_FIELDS), np.int32),
                    numeric=np.empty((1_000_000, 0), np.float32),
                    labels=random.integers(0, 2, (1_000_000, 1)).astype(np.float32),
                )
            )
        declared = TableSchema(
            name="loader",
            input=TableInput(files="none"),
            features={name: Categorical() for name in names},
            labels={"label": LabelSpec()},
        )
        split_info = writer.close()
        manifest = Manifest(
            rankloom_version="benchmark",
            name="loader",
            declared=declared,
            fitted=schema,
            splits={"train": split_info},
            files=writer.files,
        )
        write_manifest(folder, manifest)
        split = Dataset.open(folder).split("train")
        whole = split.slice(0, split.rows).categorical
        for turn in range(rounds + 1):
            loader = Loader(split, BATCH_SIZE, shuffle=True, seed=turn)
            start = time.perf_counter()
            rows = sum(batch.size for batch in loader)
            rate = rows / (time.perf_counter() - start)
            order = torch.randperm(split.rows)
            start = time.perf_counter()
            for first in range(0, split.rows, BATCH_SIZE):
                whole.index_select(0, order[first : first + BATCH_SIZE])
            bare = split.rows / (time.perf_counter() - start)
            if turn:
                result["loader"].append(rate)
                result["index_select"].append(bare)
    return result


def gauc_seconds(rounds: int) -> list[float]:
    """Seconds of GAUC over GAUC_ROWS rows in GAUC_GROUPS groups."""
    from rankloom.evaluation.metrics import gauc

    random = np.random.default_rng(0)
    labels = (random.random(GAUC_ROWS) < 0.3).astype(np.float32)
    scores = random.normal(size=GAUC_ROWS).astype(np.float32)
    groups = random.integers(0, GAUC_GROUPS, GAUC_ROWS)
    return [_seconds(lambda: gauc(labels, scores, groups)) for _ in range(rounds)]


def run(out: Path, rounds: int, threads: int) -> None:
    """Measure and write one result file."""
    torch.set_num_threads(threads)
    rates = loader_rates(rounds)
    seconds = gauc_seconds(rounds)
    document = {
        "kind": "parts",
        "what": f"shuffled loading of {LOADER_FIELDS} int32 fields, batch {BATCH_SIZE}; "
        f"GAUC of {GAUC_ROWS} rows in {GAUC_GROUPS} groups",
        "rounds": rounds,
        "results": [
            {"part": "loader", "unit": "rows/s", "median": statistics.median(rates["loader"])},
            {
                "part": "bare index_select of the same rows",
                "unit": "rows/s",
                "median": statistics.median(rates["index_select"]),
            },
            {"part": "gauc", "unit": "seconds", "median": statistics.median(seconds)},
        ],
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
