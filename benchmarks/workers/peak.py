"""The machine alone: one large float32 matrix product, and copying memory."""

import json
import sys
import time
from types import SimpleNamespace

import torch

from benchmarks.worker import serve

SIDE = 2048
COPIED_FLOATS = 1 << 26  # 256 MiB, far above any cache
REPEATS = 5


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    source = torch.randn(COPIED_FLOATS)
    target = torch.empty_like(source)

    def best(function, *operands: torch.Tensor) -> float:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            function(*operands)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def peak() -> dict[str, float]:
        """The best of a few: the machine's limits, not its mood."""
        return {
            "flops_per_second": 2 * SIDE**3 / best(torch.mm, left, right),
            "bytes_per_second": 2 * 4 * COPIED_FLOATS / best(torch.Tensor.copy_, target, source),
        }

    serve({"peak": peak})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
