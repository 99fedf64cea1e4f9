"""Training and inference rows per second, ours and the peers', alternating in one process tree."""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.machine import describe_machine
from benchmarks.peers import PEER_ENVIRONMENT, peer_python
from benchmarks.worker import Worker

MODELS = ("lr", "fm", "deepfm", "dcnv2")
MODULES = {shapes.FUXI: "fuxictr", shapes.DEEPCTR: "deepctr", shapes.RECHUB: "rechub"}
"""The peers' workers."""
ROOFLINE_MODELS = ("deepfm", "dcnv2")  # LR and FM hold no matrix product


@dataclass(frozen=True)
class Contender:
    """One library in one setting."""

    name: str
    module: str
    ours: bool
    options: dict[str, Any]


def contenders(model: str) -> list[Contender]:
    """Who runs on this model."""
    result = [
        Contender("rankloom", "ours", True, {"precision": "float32", "compile": False}),
        Contender("rankloom bf16 compiled", "ours", True, {"precision": "bf16", "compile": True}),
    ]
    peers = shapes.CASES[model].peers
    result += [Contender(peer, MODULES[peer], False, {}) for peer in peers]
    if model in ROOFLINE_MODELS:
        for precision in ("float32", "bfloat16"):
            options = {"precision": precision}
            result.append(Contender(f"matrix products {precision}", "matmul", True, options))
    return result


def make_data(folder: Path, rows: int) -> None:
    """Write the shared data once: npz for the peers, a data set folder for us."""
    from benchmarks.workers.ours import write_dataset

    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f"rows-{rows}"
    if marker.exists():
        return
    for split, count, seed in (("train", rows, 1), ("valid", rows // 2, 2)):
        ids, labels = shapes.make_rows(count, seed)
        shapes.write_npz(folder / f"{split}.npz", ids, labels)
    write_dataset(folder)
    marker.touch()


def measure(model: str, folder: Path, rows: int, rounds: int, threads: int) -> dict[str, Any]:
    """Alternate between the contenders; the first round warms up and does not count."""
    workers: dict[str, Worker] = {}
    python = peer_python(PEER_ENVIRONMENT)
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    for contender in contenders(model):
        arguments = {
            "model": model,
            "folder": str(folder),
            "threads": threads,
            "rows": rows,
            "batch_size": shapes.BATCH_SIZE,
            "seed": 0,
        } | contender.options
        interpreter = Path(sys.executable) if contender.ours else python
        log = logs / f"{model}-{contender.name.replace(' ', '-')}.log"
        workers[contender.name] = Worker(
            interpreter, f"benchmarks.workers.{contender.module}", arguments, log
        )
        workers[contender.name].wait()
    samples: dict[str, dict[str, list[float]]] = {
        name: {"epoch": [], "infer": []} for name in workers
    }
    for turn in range(rounds + 1):
        for command in ("epoch", "infer"):
            for name, worker in workers.items():
                answer = worker.ask(command)
                if turn:
                    samples[name][command].append(answer["rows"] / answer["seconds"])
    aucs = {
        name: worker.ask("auc")["auc"]
        for name, worker in workers.items()
        if not name.startswith("matrix")
    }
    for worker in workers.values():
        worker.close()
    return {
        "model": model,
        "training_rows_per_second": {n: s["epoch"] for n, s in samples.items()},
        "inference_rows_per_second": {n: s["infer"] for n, s in samples.items()},
        "validation_auc_after_the_run": aucs,
    }


def run(
    work: Path, out: Path, models: tuple[str, ...], rows: int, rounds: int, threads: int
) -> None:
    """Measure and write one result file."""
    make_data(work, rows)
    results = [measure(model, work, rows, rounds, threads) for model in models]
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "kind": "training",
        "what": "training and inference rows per second, dense Adam, table-wide L2",
        "shape": {
            "fields": shapes.NUM_FIELDS,
            "feature_values": shapes.FEATURE_VALUES,
            "embedding_dim": shapes.EMBEDDING_DIM,
            "hidden": shapes.HIDDEN,
            "batch_size": shapes.BATCH_SIZE,
            "embedding_l2": shapes.EMBEDDING_L2,
            "training_rows": rows,
        },
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.write_text(json.dumps(document, indent=1) + "\n")


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
