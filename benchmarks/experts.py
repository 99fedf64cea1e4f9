"""Experts: seconds of all of them for all rows, and of each for the rows that chose it."""

import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from rankloom.layers.experts import ExpertLinear, TokenExperts

Layer = TokenExperts | ExpertLinear

ACTIVE = ((2, 4), (2, 16))
"""Experts that a token chooses, and experts."""
DIMS = (64, 256)
EXPANSION = 4
KINDS = (
    ("networks", 1, (16, 128, 1_024, 8_192)),
    ("linear layers", 1, (16, 128, 1_024, 8_192)),
    ("networks of every token", 8, (16, 128, 1_024)),
)
"""Layer, tokens of a row, rows. Only the last has experts for each of the tokens."""
MOST_WORK = 10**10
"""Multiply-adds of all experts for all rows; what is larger is left out."""
SKEW = 0.5
"""Added to the scores of each expert over those of the one before: the last ones are busy."""


def run(out: Path, *, rounds: int, threads: int) -> None:
    """Measure the grid and write one result file."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    results = []
    for kind, num_tokens, rows_of in KINDS:
        for (active, experts), dim, rows in product(ACTIVE, DIMS, rows_of):
            layer, multiply_adds = _build(kind, num_tokens, experts, dim)
            if rows * num_tokens * experts * multiply_adds > MOST_WORK:
                continue
            for skew in (0.0, SKEW):
                x = torch.randn(rows, num_tokens, dim, requires_grad=True)
                gates = _gates(x, experts, active, skew)
                results.append(
                    {
                        "layer": kind,
                        "active": active,
                        "experts": experts,
                        "dim": dim,
                        "rows": rows,
                        "even": skew == 0,
                        "auto": "chosen" if layer.chooses(gates) else "all",
                        **_measure(layer, x, gates, rounds),
                    }
                )
    document = {
        "kind": "experts",
        "what": f"experts, networks with {EXPANSION} times as many hidden units as a token is wide "
        "or linear layers, float32",
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def _build(kind: str, num_tokens: int, experts: int, dim: int) -> tuple[Layer, int]:
    """A layer, and the multiply-adds of one of its experts for one token."""
    if kind == "linear layers":
        return ExpertLinear(experts, dim, dim), dim**2
    own = num_tokens if kind == "networks of every token" else None
    return TokenExperts(own, experts, dim, EXPANSION * dim), 2 * EXPANSION * dim**2


def _gates(x: Tensor, experts: int, active: int, skew: float) -> Tensor:
    scores = torch.randn(*x.shape[:2], experts) + skew * torch.arange(experts)
    largest, index = scores.softmax(-1).topk(active)
    return torch.zeros_like(scores).scatter(-1, index, largest).requires_grad_()


def _measure(layer: Layer, x: Tensor, gates: Tensor, rounds: int) -> dict[str, Any]:
    """Medians of both ways in turns, and how far their outputs differ."""
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "all": layer.run_all,
        "chosen": layer.run_chosen,
    }
    seconds: dict[str, list[float]] = {
        f"{name}_{what}_seconds": [] for name in ways for what in ("forward", "step")
    }
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            layer.zero_grad()
            x.grad = gates.grad = None
            start = time.perf_counter()
            with torch.inference_mode():
                way(x, gates)
            middle = time.perf_counter()
            torch.autograd.backward(way(x, gates).sum())
            end = time.perf_counter()
            if turn:
                seconds[f"{name}_forward_seconds"].append(middle - start)
                seconds[f"{name}_step_seconds"].append(end - middle)
    with torch.inference_mode():
        difference = (layer.run_all(x, gates) - layer.run_chosen(x, gates)).abs().max().item()
    return {
        **{name: statistics.median(each) for name, each in seconds.items()},
        "largest_difference": difference,
    }
