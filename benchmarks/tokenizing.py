"""Items per second and peak memory of every tokenizer on a million synthetic item vectors.

Each tokenizer is a process of its own. It is fitted on a sample, then the vectors are made and
tokenized block by block, as a catalogue too large for memory is; only the codes are kept.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.worker import Worker

NUM_ITEMS = 1_000_000
WIDTH = 64
"""Numbers of a vector."""
SAMPLE = 20_000
"""Items that a tokenizer is fitted on."""
STEPS = 100
"""Training steps of those that are trained by steps: enough to leave the start, not to be good."""
BLOCK = 65_536
"""Items tokenized in one call."""
TOKENIZERS: dict[str, dict[str, Any]] = {
    "RQ-KMeans": {"kind": "rq_kmeans"},
    "RQ-VAE": {"kind": "rq_vae"},
    "LETTER": {"kind": "letter"},
    "OPQ, 32 digits": {"kind": "opq"},
    "GAOQ": {"kind": "gaoq"},
    "CapsID": {"kind": "capsid"},
    "CapsID, fixed length": {"kind": "capsid", "length": {"kind": "fixed"}},
}
"""Settings beside the defaults. Not here: ActionPiece, whose codes are those of OPQ, and attribute
prefixes, which read a side field and are RQ-KMeans below it."""


def run(
    out: Path,
    work: Path,
    *,
    rounds: int,
    threads: int,
    num_items: int = NUM_ITEMS,
    sample: int = SAMPLE,
    tokenizers: tuple[str, ...] = tuple(TOKENIZERS),
) -> None:
    """Measure and write one result file."""
    work.mkdir(parents=True, exist_ok=True)
    results = []
    for name in tokenizers:
        arguments = {
            "config": TOKENIZERS[name],
            "width": WIDTH,
            "sample": sample,
            "steps": STEPS,
            "block": min(BLOCK, num_items),
            "threads": threads,
        }
        log = work / f"tokenizing-{TOKENIZERS[name]['kind']}.log"
        worker = Worker(Path(sys.executable), "benchmarks.workers.tokenizing", arguments, log)
        try:
            worker.wait()
            before = worker.ask("memory")["peak_memory_bytes"]
            fitted = worker.ask("fit")
            after = worker.ask("memory")["peak_memory_bytes"]
            rates = []
            for _ in range(rounds):
                answer = worker.ask("tokenize", items=num_items)
                rates.append(num_items / answer["seconds"])
            peak = worker.ask("memory")["peak_memory_bytes"]
        finally:
            worker.close()
        results.append(
            {
                "tokenizer": name,
                "settings": TOKENIZERS[name],
                "level_sizes": fitted["level_sizes"],
                "fit_seconds": fitted["seconds"],
                "items_per_second": statistics.median(rates),
                "fit_memory_bytes": after - before,
                "peak_memory_bytes": peak - before,
            }
        )
    document = {
        "kind": "tokenizing",
        "what": f"{num_items:,} vectors of {WIDTH} numbers, tokenizers fitted on {sample:,} of "
        f"them ({STEPS} steps where there are steps), blocks of {BLOCK:,}, float32",
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
