"""`python -m benchmarks`: measure everything on this machine. Run nothing else meanwhile."""

import argparse
from pathlib import Path

from benchmarks import (
    connections,
    depth,
    experts,
    loopctr,
    onetrans_cache,
    parts,
    preparation,
    retrieval,
    scenario,
    shapes,
    speed,
    tokenizing,
    zoo,
)

RESULTS = Path(__file__).parent / "results"
WHAT = (
    "training",
    "zoo",
    "dlf",
    "preparation",
    "parts",
    "onetrans_cache",
    "connections",
    "experts",
    "loopctr",
    "scenario",
    "decoding",
    "tokenizing",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*WHAT, []])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/peers/work"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--models", nargs="+", help=f"default: {', '.join(speed.MODELS)}; for zoo: every case"
    )
    parser.add_argument("--rows", type=int, default=300_000, help="training rows, at most")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; zoo and dlf take 3 at most")
    parser.add_argument("--seconds", type=float, default=3.0, help="zoo: longest epoch")
    parser.add_argument("--batch-size", type=int, default=shapes.BATCH_SIZE, help="zoo and dlf")
    parser.add_argument("--resume", action="store_true", help="zoo: skip what the file has")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000_000, 10_000_000])
    parser.add_argument("--peer-limit", type=int, default=1_000_000)
    arguments = parser.parse_args()
    what = arguments.what or list(WHAT)
    short = min(arguments.rounds, 3)
    if "parts" in what:
        parts.run(arguments.out / "parts.json", arguments.rounds, arguments.threads)
    if "onetrans_cache" in what:
        onetrans_cache.run(
            arguments.out / "onetrans_cache.json", arguments.rounds, arguments.threads
        )
    if "connections" in what:
        connections.run(
            arguments.out / "connections.json", rounds=arguments.rounds, threads=arguments.threads
        )
    if "experts" in what:
        experts.run(
            arguments.out / "experts.json", rounds=arguments.rounds, threads=arguments.threads
        )
    if "loopctr" in what:
        loopctr.run(
            arguments.out / "loopctr.json", rounds=arguments.rounds, threads=arguments.threads
        )
    if "scenario" in what:
        scenario.run(
            arguments.out / "scenario.json", rounds=arguments.rounds, threads=arguments.threads
        )
    if "decoding" in what:
        retrieval.run(
            arguments.out / "decoding.json", rounds=arguments.rounds, threads=arguments.threads
        )
    if "tokenizing" in what:
        tokenizing.run(
            arguments.out / "tokenizing.json",
            arguments.work,
            rounds=short,
            threads=arguments.threads,
        )
    if "training" in what:
        speed.run(
            arguments.work,
            arguments.out / "training.json",
            tuple(arguments.models or speed.MODELS),
            arguments.rows,
            arguments.rounds,
            arguments.threads,
        )
    if "zoo" in what:
        zoo.run(
            arguments.work,
            arguments.out / "zoo.json",
            tuple(arguments.models or shapes.CASES),
            rows=arguments.rows,
            rounds=short,
            threads=arguments.threads,
            seconds=arguments.seconds,
            batch_size=arguments.batch_size,
            resume=arguments.resume,
        )
    if "dlf" in what:
        depth.run(
            arguments.work,
            arguments.out / "dlf.json",
            rounds=short,
            threads=arguments.threads,
            batch_size=arguments.batch_size,
        )
    if "preparation" in what:
        preparation.run(
            arguments.work,
            arguments.out / "preparation.json",
            tuple(arguments.sizes),
            arguments.rounds,
            arguments.peer_limit,
        )


if __name__ == "__main__":
    main()
