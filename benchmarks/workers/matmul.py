"""The roofline: the matrix products of a training step, and nothing else."""

import json
import sys
import time
from types import SimpleNamespace

import torch

from benchmarks import shapes
from benchmarks.worker import serve


def layers(model: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear map of the model."""
    width = shapes.EMBEDDING_DIM * shapes.NUM_FIELDS
    widths = (width, *shapes.HIDDEN)
    deep = list(zip(widths, shapes.HIDDEN, strict=False))
    return {
        "deepfm": [*deep, (shapes.HIDDEN[-1], 1)],
        "dcnv2": [*deep, *[(width, width)] * shapes.CROSS_LAYERS, (width + shapes.HIDDEN[-1], 1)],
    }[model]


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.precision)
    rows = shapes.BATCH_SIZE
    products = [
        (
            torch.randn(rows, n, dtype=dtype),
            torch.randn(n, m, dtype=dtype),
            torch.randn(rows, m, dtype=dtype),
        )
        for n, m in layers(arguments.model)
    ]
    steps = arguments.rows // rows

    def epoch() -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(steps):
            for x, weight, gradient in products:
                x @ weight  # forward
                gradient @ weight.T  # gradient of the input
                x.T @ gradient  # gradient of the weight
        return {"rows": steps * rows, "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(steps):
            for x, weight, _ in products:
                x @ weight
        return {"rows": steps * rows, "seconds": time.perf_counter() - start}

    serve({"epoch": epoch, "infer": infer})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
