"""OneTrans: seconds to score a request, its events encoded once or for every candidate."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from rankloom.batch import Batch, SequenceGroup
from rankloom.config import parse_config
from rankloom.ranking.loopctr import LoopCTR
from rankloom.ranking.onetrans import OneTrans, OneTransConfig
from rankloom.schema import CategoricalField, IdMember, Label, Schema, SequenceField

CANDIDATES = (1, 100, 1000)
NUM_FIELDS = 16
NUM_EVENTS = 200
TABLE_ROWS = 100_000
SETTINGS = {
    "embedding_dim": 16,
    "dim": 64,
    "num_layers": 4,
    "num_heads": 4,
    "tokens": {"kind": "per_field"},
}
PYRAMID = {"multiple": 8}


def request_schema(num_fields: int = NUM_FIELDS, num_events: int = NUM_EVENTS) -> Schema:
    """Id fields, and events of one id."""
    names = ["item", *(f"C{i}" for i in range(1, num_fields))]
    item = IdMember(name="item", table="item")
    history = SequenceField(name="history", ids=(item,), max_length=num_events, ordered=True)
    return Schema(
        tables=dict.fromkeys(names, TABLE_ROWS),
        categorical=tuple(CategoricalField(name=name, table=name) for name in names),
        sequences=(history,),
        labels=(Label(name="label"),),
    )


def rows_of_one_request(rows: int, num_fields: int, num_events: int) -> Batch:
    """Rows with fields of their own and the same events, as many as there can be."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, TABLE_ROWS, (num_events, 1), generator=generator, dtype=torch.int32)
    offsets = torch.arange(rows + 1) * num_events
    shape = (rows, num_fields)
    return Batch(
        categorical=torch.randint(2, TABLE_ROWS, shape, generator=generator, dtype=torch.int32),
        numeric=torch.empty(rows, 0),
        sequences={"history": SequenceGroup(offsets=offsets, ids=ids.repeat(rows, 1))},
    )


@torch.inference_mode()
def run(out: Path, rounds: int, threads: int) -> None:
    """Measure and write one result file."""
    torch.set_num_threads(threads)
    schema = request_schema()
    results: list[dict[str, float]] = []
    for pyramid in (None, PYRAMID):
        settings = SETTINGS if pyramid is None else SETTINGS | {"pyramid": pyramid}
        model = OneTrans(parse_config(OneTransConfig, settings, "benchmark"), schema).eval()
        measured = [measure_request(model, candidates, rounds) for candidates in CANDIDATES]
        results += [{"pyramid": pyramid is not None} | result for result in measured]
    document = {
        "kind": "onetrans_cache",
        "what": f"one request of OneTrans, {NUM_EVENTS} events, {NUM_FIELDS} fields, float32",
        "settings": SETTINGS,
        "pyramid": PYRAMID,
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def measure_request(
    model: OneTrans | LoopCTR,
    candidates: int,
    rounds: int,
    num_fields: int = NUM_FIELDS,
    num_events: int = NUM_EVENTS,
) -> dict[str, float]:
    """Seconds of both ways in turns, after one call of each, and how far their logits differ."""
    rows = rows_of_one_request(candidates, num_fields, num_events)
    request = rows.select(torch.zeros(1, dtype=torch.int64))
    places = torch.zeros(candidates, dtype=torch.int64)
    cache = model.encode_events(request)
    difference = (model.score(rows, cache, places) - model(rows)).abs().max().item()
    seconds: dict[str, list[float]] = {"together": [], "encode": [], "score": []}
    for _ in range(rounds):
        seconds["together"].append(seconds_of(lambda: model(rows)))
        seconds["encode"].append(seconds_of(lambda: model.encode_events(request)))
        seconds["score"].append(seconds_of(lambda: model.score(rows, cache, places)))
    return {
        "candidates": candidates,
        **{f"{name}_seconds": statistics.median(each) for name, each in seconds.items()},
        "cache_bytes": cache.memory_bytes,
        "largest_difference": difference,
    }


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
