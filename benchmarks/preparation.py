"""Rows per second and peak memory of preparing raw Criteo text, ours and FuxiCTR's, alternating.

Each run is a process of its own. FuxiCTR gets the same rows as a CSV with a header, because it
reads no headerless file, and is spared the numeric transform. Memory is anonymous memory (mapped
files not counted) of the process and all its descendants together, sampled.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.peers import PEER_ENVIRONMENT, peer_python

HEADER = "label," + ",".join([*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))])


def make_tables(folder: Path, rows: int, *, csv: bool) -> tuple[Path, Path]:
    """The raw TSV, and for the peer the same rows as CSV."""
    from rankloom.data.synthetic import write_criteo

    folder.mkdir(parents=True, exist_ok=True)
    raw, with_header = folder / f"criteo-{rows}.tsv", folder / f"criteo-{rows}.csv"
    write_criteo(raw, rows, seed=1)
    if csv:
        with raw.open() as source, with_header.open("w") as target:
            target.write(HEADER + "\n")
            target.writelines(line.replace("\t", ",") for line in source)
    return raw, with_header


def anonymous_bytes(root: int) -> int:
    """Anonymous memory of a process and its descendants."""
    parents: dict[int, int] = {}
    memory: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "status").read_text()
        except OSError:  # it ended meanwhile
            continue
        values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        parents[int(entry.name)] = int(values["PPid"])
        memory[int(entry.name)] = int(values.get("RssAnon", "0 kB").split()[0]) * 1024
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(memory.get(pid, 0) for pid in family)


def run_once(python: Path, module: str, arguments: dict[str, Any], log: Path) -> dict[str, float]:
    """Wall seconds and peak memory of one process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [str(python), "-P", "-m", module, json.dumps(arguments)]
    start = time.perf_counter()
    peak = 0
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{module} failed; its log: {log}")
    return {"seconds": seconds, "peak_memory_bytes": peak}


def run(work: Path, out: Path, sizes: tuple[int, ...], rounds: int, peer_limit: int) -> None:
    """Measure every size; the peer runs up to `peer_limit` rows."""
    peer = peer_python(PEER_ENVIRONMENT)
    results = []
    for rows in sizes:
        tsv, csv = make_tables(work, rows, csv=rows <= peer_limit)
        plan: list[tuple[str, Path, str, dict[str, Any]]] = [
            (
                "rankloom",
                Path(sys.executable),
                "benchmarks.workers.ours_prepare",
                {"table": str(tsv), "out": str(work / "ours")},
            )
        ]
        if rows <= peer_limit:
            theirs = {"table": str(csv), "out": str(work / "theirs"), "block_rows": 100_000}
            plan.append(("fuxictr", peer, "benchmarks.workers.fuxictr_prepare", theirs))
        samples: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in plan}
        for _ in range(rounds):
            for name, python, module, arguments in plan:
                shutil.rmtree(arguments["out"], ignore_errors=True)
                log = work / f"{name}-{rows}.log"
                samples[name].append(run_once(python, module, arguments, log))
                shutil.rmtree(arguments["out"], ignore_errors=True)
        for name, runs in samples.items():
            results.append(
                {
                    "library": name,
                    "rows": rows,
                    "rows_per_second": [rows / r["seconds"] for r in runs],
                    "peak_memory_bytes": statistics.median(r["peak_memory_bytes"] for r in runs),
                }
            )
        tsv.unlink()
        csv.unlink(missing_ok=True)
    document = {
        "kind": "preparation",
        "what": "raw Criteo text to a prepared data set, whole process",
        "rounds": rounds,
        "results": results,
        **describe_machine(threads=os.cpu_count() or 1),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
