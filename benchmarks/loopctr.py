"""LoopCTR beside StackCTR and OneTrans of equal width: training, scoring by loops, one request.

All in one process. Every round trains each model on one batch and scores a prepared data set, file
to logits, with each number of loops.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.machine import describe_machine
from benchmarks.onetrans_cache import CANDIDATES, measure_request, request_schema, seconds_of
from rankloom.catalog import build_model, lookup
from rankloom.config import parse_config
from rankloom.data.examples import example_dataset, random_columns
from rankloom.data.loader import Loader
from rankloom.evaluation.cost import saved_bytes
from rankloom.evaluation.protocol import predict
from rankloom.layers.losses import ranking_loss
from rankloom.protocols import HasLoss, Loss
from rankloom.ranking.loopctr import LoopCTR

NUM_FIELDS = 8
NUM_EVENTS = 50
TRAINING_ROWS = 256
SCORED_ROWS = 2048
LOOPS = 3
SIZES = {"embedding_dim": 16, "dim": 64, "num_heads": 4, "tokens": {"kind": "per_field"}}
MODELS: dict[str, dict[str, Any]] = {
    "LoopCTR": {"name": "loopctr", "num_loops": LOOPS},
    "LoopCTR, loops done again": {"name": "loopctr", "num_loops": LOOPS, "checkpoint_loops": True},
    "LoopCTR without experts and streams": {
        "name": "loopctr",
        "num_loops": LOOPS,
        "num_experts": 1,
        "num_streams": 1,
    },
    "LoopCTR without loops": {"name": "loopctr", "num_loops": 0},
    "StackCTR": {"name": "stackctr", "num_layers": LOOPS},
    "OneTrans, 5 layers": {"name": "onetrans", "num_layers": LOOPS + 2},
}
"""The entry and the exit are a layer each, so that all but those without loops have five."""


def run(out: Path, rounds: int, threads: int) -> None:
    """Measure and write one result file."""
    torch.set_num_threads(threads)
    schema = request_schema(NUM_FIELDS, NUM_EVENTS)
    models = {name: _build(settings) for name, settings in MODELS.items()}
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = {"train": TRAINING_ROWS, "test": SCORED_ROWS}
        data = example_dataset(
            Path(folder),
            schema,
            {name: random_columns(schema, count, generator) for name, count in rows.items()},
        )
        (batch,) = Loader(data.split("train"), TRAINING_ROWS)
        steps: dict[str, list[float]] = {name: [] for name in models}
        scores: dict[tuple[str, int | None], list[float]] = {
            (name, loops): []
            for name, model in models.items()
            for loops in (range(LOOPS + 1) if name == "LoopCTR" else [None])
        }
        for turn in range(rounds + 1):  # the first warms up
            for name, model in models.items():
                elapsed = seconds_of(lambda model=model: _loss(model, batch).total.backward())
                if turn:
                    steps[name].append(elapsed)
            for (name, loops), times in scores.items():
                model = models[name]
                if isinstance(model, LoopCTR):
                    model.predict_loops = model.num_loops if loops is None else loops
                loader = Loader(data.split("test"), 1024)
                elapsed = seconds_of(lambda model=model, loader=loader: predict(model, loader))
                if turn:
                    times.append(elapsed)
        memory = {name: saved_bytes(model.train(), batch) for name, model in models.items()}
    document = {
        "kind": "loopctr",
        "what": f"LoopCTR and stacks of equal width, dim {SIZES['dim']}, {NUM_EVENTS} events, "
        f"{NUM_FIELDS} fields, batches of {TRAINING_ROWS}, {SCORED_ROWS:,} scored rows, float32",
        "settings": {"sizes": SIZES, "models": MODELS},
        "rounds": rounds,
        "training": [
            {
                "model": name,
                "rows_per_second": TRAINING_ROWS / statistics.median(times),
                "ratio": _ratio(times, steps["LoopCTR"]),
                "saved_bytes": memory[name],
            }
            for name, times in steps.items()
        ],
        "scoring": [
            {
                "model": name,
                "loops": loops,
                "rows_per_second": SCORED_ROWS / statistics.median(times),
                "ratio": _ratio(times, scores["LoopCTR", LOOPS]),
            }
            for (name, loops), times in scores.items()
        ],
        "requests": _requests(models["LoopCTR"], rounds),
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def _build(settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    entry = lookup(settings["name"])
    values = SIZES | {key: value for key, value in settings.items() if key != "name"}
    schema = request_schema(NUM_FIELDS, NUM_EVENTS)
    return build_model(entry.name, parse_config(entry.config, values, "benchmark"), schema).train()


def _loss(model: nn.Module, batch: Any) -> Loss:
    model.zero_grad()
    return model.loss(batch) if isinstance(model, HasLoss) else ranking_loss(model(batch), batch)


def _ratio(times: list[float], base: list[float]) -> float:
    """How many times faster, the median over rounds."""
    return statistics.median(b / a for a, b in zip(times, base, strict=True))


@torch.inference_mode()
def _requests(model: nn.Module, rounds: int) -> list[dict[str, Any]]:
    assert isinstance(model, LoopCTR)
    model.eval()
    results = []
    for loops in (0, LOOPS):
        model.predict_loops = loops
        for candidates in CANDIDATES:
            measured = measure_request(model, candidates, rounds, NUM_FIELDS, NUM_EVENTS)
            results.append({"loops": loops, **measured})
    return results
