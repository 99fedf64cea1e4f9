"""DLF's training step by depth and number of fields: seconds, memory, and what bounds it."""

import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.worker import Worker
from benchmarks.workers.dlf import SETTINGS

LAYERS = (2, 4, 8, 12)
FIELDS = (10, 20, 39)


def run(work: Path, out: Path, *, rounds: int, threads: int, batch_size: int) -> None:
    """Measure every point in a process of its own and write one result file."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    peak = Worker(
        Path(sys.executable), "benchmarks.workers.peak", {"threads": threads}, logs / "peak.log"
    )
    peak.wait()
    results = []
    for fields, layers in product(FIELDS, LAYERS):
        arguments = {
            "fields": fields,
            "layers": layers,
            "batch_size": batch_size,
            "threads": threads,
        }
        log = logs / f"dlf-{fields}-{layers}.log"
        worker = Worker(Path(sys.executable), "benchmarks.workers.dlf", arguments, log)
        worker.wait()
        worker.ask("step")  # warms up
        steps, machine = [], []
        for _ in range(rounds):
            machine.append(peak.ask("peak"))
            steps.append(worker.ask("step"))
        results.append(
            {
                "fields": fields,
                "layers": layers,
                **{key: statistics.median(s[key] for s in steps) for key in steps[0]},
                **worker.ask("memory"),
                "cost": worker.ask("cost"),
                **{key: statistics.median(m[key] for m in machine) for key in machine[0]},
            }
        )
        worker.close()
    peak.close()
    document: dict[str, Any] = {
        "kind": "dlf",
        "what": f"DLF's training step, batch {batch_size}, float32, dense Adam",
        "settings": SETTINGS,
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
