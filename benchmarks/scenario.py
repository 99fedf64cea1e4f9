"""MI-DPG beside its backbone at ten scenarios: training by fusion and condition, folded inference.

All in one process, one model after another in every round. A training step is the objective, its
gradient and a step of Adam.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe_machine
from benchmarks.onetrans_cache import seconds_of
from rankloom.batch import Batch
from rankloom.catalog import CATALOG, build_model
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import ranking_loss
from rankloom.protocols import HasLoss
from rankloom.scenario.mi_dpg import MIDPG
from rankloom.schema import Schema

NUM_SCENARIOS = 10
NUM_FIELDS = 20
EMBEDDING_DIM = 16
TRAINING_ROWS = 4096
SCORED_ROWS = (1, 32, 512, 4096)
HIDDEN: dict[str, list[int]] = {"small": [128, 64, 32], "large": [400, 400, 400]}
MI_DPG: dict[str, dict[str, Any]] = {
    "MI-DPG": {},
    "MI-DPG, no mutual information": {"mutual_information": {"kind": "none"}},
    "MI-DPG, linear": {"fusion": {"kind": "hadamard", "weighing": "linear"}},
    "MI-DPG, left_right": {"fusion": {"kind": "left_right"}},
    "MI-DPG, additive": {"fusion": {"kind": "additive"}},
    "MI-DPG, linear, context": {
        "fusion": {"kind": "hadamard", "weighing": "linear"},
        "condition": {"kind": "context"},
    },
    "MI-DPG, additive, context": {
        "fusion": {"kind": "additive"},
        "condition": {"kind": "context"},
    },
    "MI-DPG, hadamard, context": {"condition": {"kind": "context"}},
}
"""Settings beside the backbone."""
BY_ROW = "MI-DPG, hadamard, context"
"""Makes a matrix for every row; not measured on the large network, where a step takes a minute."""


def run(out: Path, *, rounds: int, threads: int, rows: int = TRAINING_ROWS) -> None:
    """Measure and write one result file."""
    torch.set_num_threads(threads)
    schema = scenario_schema()
    batch = known_scenarios(random_batch(schema, rows))
    document = {
        "kind": "scenario",
        "what": f"{NUM_SCENARIOS} scenarios, {NUM_FIELDS} fields of width {EMBEDDING_DIM}, batches "
        f"of {rows:,} rows, a DNN as backbone, float32",
        "hidden": HIDDEN,
        "settings": MI_DPG,
        "rounds": rounds,
        "training": [
            {"size": size, **result}
            for size, hidden in HIDDEN.items()
            for result in _training(models(schema, hidden, by_row=size == "small"), batch, rounds)
        ],
        "scoring": [
            {"size": size, **result}
            for size, hidden in HIDDEN.items()
            for result in _scoring(schema, hidden, rounds)
        ],
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def scenario_schema() -> Schema:
    """The data: ids alone."""
    return example_schema(
        num_categorical=NUM_FIELDS - 1,  # beside `item`
        num_numeric=0,
        num_scenarios=NUM_SCENARIOS + 1,
        sequences=False,
        vectors=False,
        rows_per_table=1000,
    )


def known_scenarios(batch: Batch) -> Batch:
    """The batch with its rows of the unknown scenario in the first one."""
    assert batch.scenario is not None
    batch.scenario.clamp_(min=1)
    return batch


def models(schema: Schema, hidden: list[int], *, by_row: bool = False) -> dict[str, nn.Module]:
    """The backbone, MI-DPG in its forms, and STAR of the same widths if the catalog has it."""
    sizes = {"embedding_dim": EMBEDDING_DIM, "hidden": hidden}
    built = {"DNN": _build("dnn", sizes, schema)}
    for name, settings in MI_DPG.items():
        if name == BY_ROW and not by_row:
            continue
        built[name] = _build("mi_dpg", {"backbone": {"name": "dnn"} | sizes} | settings, schema)
    if "star" in CATALOG:
        built["STAR"] = _build("star", sizes, schema)
    return built


def _build(name: str, settings: dict[str, Any], schema: Schema) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, parse_config(CATALOG[name].config, settings, "benchmark"), schema)


def _training(built: dict[str, nn.Module], batch: Batch, rounds: int) -> list[dict[str, Any]]:
    steps = {name: _step(model.train(), batch) for name, model in built.items()}
    times = _alternate(steps, rounds)
    return [
        {
            "model": name,
            "parameters": sum(p.numel() for p in built[name].parameters()),
            "rows_per_second": batch.size / statistics.median(seconds),
            "ratio": _ratio(seconds, times["DNN"]),
        }
        for name, seconds in times.items()
    ]


def _step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = (
            model.loss(batch) if isinstance(model, HasLoss) else ranking_loss(model(batch), batch)
        )
        torch.autograd.backward(loss.total)
        optimizer.step()

    return step


@torch.inference_mode()
def _scoring(schema: Schema, hidden: list[int], rounds: int) -> list[dict[str, Any]]:
    built = models(schema, hidden)
    model = built["MI-DPG"].eval()
    assert isinstance(model, MIDPG)
    compared = {"DNN": built["DNN"].eval(), "MI-DPG": model, "MI-DPG, folded": model.fold()}
    results = []
    for rows in SCORED_ROWS:
        batch = known_scenarios(random_batch(schema, rows)).without_labels()
        calls = {name: partial(one, batch) for name, one in compared.items()}
        times = _alternate(calls, rounds)
        results += [
            {
                "model": name,
                "rows": rows,
                "milliseconds": 1000 * statistics.median(seconds),
                "ratio": _ratio(seconds, times["MI-DPG"]),
            }
            for name, seconds in times.items()
        ]
    return results


def _alternate(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            elapsed = seconds_of(call)
            if turn:
                times[name].append(elapsed)
    return times


def _ratio(seconds: list[float], base: list[float]) -> float:
    """How many times faster, the median over rounds."""
    return statistics.median(b / a for a, b in zip(seconds, base, strict=True))
