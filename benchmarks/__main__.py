"""`python -m benchmarks`: measure everything on this machine. Run nothing else meanwhile."""

import argparse
from pathlib import Path

from benchmarks import parts, preparation, speed

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["training", "preparation", "parts", []])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/peers/work"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="+", default=list(speed.MODELS))
    parser.add_argument("--rows", type=int, default=300_000, help="training rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000_000, 10_000_000])
    parser.add_argument("--peer-limit", type=int, default=1_000_000)
    arguments = parser.parse_args()
    what = arguments.what or ["training", "preparation", "parts"]
    if "parts" in what:
        parts.run(arguments.out / "parts.json", arguments.rounds, arguments.threads)
    if "training" in what:
        speed.run(
            arguments.work,
            arguments.out / "training.json",
            tuple(arguments.models),
            arguments.rows,
            arguments.rounds,
            arguments.threads,
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
