"""Every ranking model of the catalog beside the libraries that have it, at the same sizes.

One process per library and model. A short epoch of one batch warms up and says how many rows the
slowest library of this model trains in the allotted seconds; all of them then get the same rows.
The file is written after every model, so that an interrupted run goes on where it stopped.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.machine import describe_machine
from benchmarks.peers import PEER_ENVIRONMENT, peer_python
from benchmarks.speed import MODULES as PEER_MODULES
from benchmarks.speed import make_data
from benchmarks.worker import Worker

OURS, PEAK = "rankloom", "peak"
MODULES = {OURS: "ours", PEAK: "peak"} | PEER_MODULES
SIZES_IN_BATCHES = (1, 2, 3, 5, 8, 12, 18, 30)
"""Data sets that exist; the calibration takes the largest that fits the allotted seconds."""


def batches_within(seconds: float, seconds_per_batch: float, most: int) -> int:
    """The largest of the data sets that one epoch passes in the allotted seconds, at least two."""
    fitting = [n for n in SIZES_IN_BATCHES if n * seconds_per_batch <= seconds and n <= most]
    return max([min(2, most), *fitting])


def start_workers(
    case: str, folder: Path, logs: Path, batch_size: int, threads: int
) -> dict[str, Worker]:
    """One process per contender and one for the machine's limits, all ready."""
    arguments = {
        "model": case,
        "folder": str(folder),
        "threads": threads,
        "batch_size": batch_size,
        "seed": 0,
        "precision": "float32",
        "compile": False,
    }
    peers = peer_python(PEER_ENVIRONMENT)
    workers = {}
    for name in (OURS, *shapes.CASES[case].peers, PEAK):
        python = peers if name in PEER_MODULES else Path(sys.executable)
        module = f"benchmarks.workers.{MODULES[name]}"
        workers[name] = Worker(python, module, arguments, logs / f"zoo-{case}-{name}.log")
    for worker in workers.values():
        worker.wait()
    return workers


def measure(
    case: str,
    work: Path,
    *,
    rows: int,
    rounds: int,
    threads: int,
    seconds: float,
    batch_size: int,
) -> dict[str, Any]:
    """Alternate between the contenders of one case."""
    began = time.perf_counter()
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    smallest = work / f"zoo-{batch_size}"
    make_data(smallest, batch_size)
    workers = start_workers(case, smallest, logs, batch_size, threads)
    machine = workers.pop(PEAK)
    try:
        slowest = max(worker.ask("epoch")["seconds"] for worker in workers.values())
        count = batch_size * batches_within(seconds, slowest, max(1, rows // batch_size))
        folder = work / f"zoo-{count}"
        make_data(folder, count)
        for worker in workers.values():
            worker.ask("use", folder=str(folder))
        rates: dict[str, dict[str, list[float]]] = {"epoch": {}, "infer": {}}
        peaks = []
        for _ in range(rounds):
            peaks.append(machine.ask("peak"))
            for command, samples in rates.items():
                for name, worker in workers.items():
                    answer = worker.ask(command)
                    samples.setdefault(name, []).append(answer["rows"] / answer["seconds"])
        memory = {name: w.ask("memory")["peak_memory_bytes"] for name, w in workers.items()}
        aucs = {name: worker.ask("auc")["auc"] for name, worker in workers.items()}
        parameters = {name: w.ask("parameters")["parameters"] for name, w in workers.items()}
        cost = workers[OURS].ask("cost")
    finally:
        for worker in (*workers.values(), machine):
            worker.close()
    return {
        "case": case,
        "model": shapes.CASES[case].model,
        "sizes": shapes.CASES[case].sizes,
        "wheel_has_layer": shapes.CASES[case].wheel_has_layer,
        "training_rows": count,
        "slowest_batch_seconds": slowest,
        "training_rows_per_second": rates["epoch"],
        "inference_rows_per_second": rates["infer"],
        "peak_memory_bytes": memory,
        "validation_auc_after_the_run": aucs,
        "parameters": parameters,
        "cost": cost,
        "peak_flops_per_second": [peak["flops_per_second"] for peak in peaks],
        "measured_seconds": time.perf_counter() - began,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def run(
    work: Path,
    out: Path,
    cases: tuple[str, ...],
    *,
    rows: int,
    rounds: int,
    threads: int,
    seconds: float,
    batch_size: int,
    resume: bool,
) -> None:
    """Measure case by case and merge each into the result file.

    Raises:
        ValueError: a case that does not exist, or a file measured under other conditions.
        RuntimeError: some cases failed; the others are in the file.
    """
    unknown = sorted(set(cases) - set(shapes.CASES))
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(shapes.CASES)}")
    document: dict[str, Any] = {
        "kind": "zoo",
        "what": "every ranking model, training and inference, float32, dense Adam, table-wide L2",
        "shape": {
            "fields": shapes.NUM_FIELDS,
            "feature_values": shapes.FEATURE_VALUES,
            "embedding_dim": shapes.EMBEDDING_DIM,
            "hidden": list(shapes.HIDDEN),
            "batch_size": batch_size,
            "embedding_l2": shapes.EMBEDDING_L2,
            "most_training_rows": rows,
            "seconds_of_an_epoch": seconds,
        },
        "rounds": rounds,
        **describe_machine(threads),
    }
    results = earlier_results(out, document)
    failures = {}
    for case in cases:
        if resume and case in results:
            continue
        try:
            results[case] = measure(
                case,
                work,
                rows=rows,
                rounds=rounds,
                threads=threads,
                seconds=seconds,
                batch_size=batch_size,
            )
        except RuntimeError as error:  # a worker ended; the other cases are worth having
            failures[case] = error
            continue
        ordered = [results[name] for name in shapes.CASES if name in results]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document | {"results": ordered}, indent=1) + "\n")
    if failures:
        raise RuntimeError("; ".join(f"{case}: {error}" for case, error in failures.items()))


def earlier_results(out: Path, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results already in the file, by case.

    Raises:
        ValueError: they were measured under other conditions.
    """
    if not out.exists():
        return {}
    earlier = json.loads(out.read_text())
    wanted = json.loads(json.dumps(document))  # tuples as lists, as they come back
    differ = [
        key
        for key in ("kind", "shape", "rounds", "machine", "versions")
        if earlier[key] != wanted[key]
    ]
    if differ:
        raise ValueError(
            f"{out} was measured with another {', '.join(differ)}; remove it, or give another --out"
        )
    return {result["case"]: result for result in earlier["results"]}
