"""The connections between layers: time, memory and operations of a stack with each of them.

One stack of pre-norm Transformer layers per connection, all in one process; every round runs each
of them once, forward and backward.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine

DIM, LAYERS, TOKENS, HEADS, ROWS = 128, 8, 40, 4, 64

CONNECTIONS: dict[str, dict[str, Any]] = {
    "identity": {"kind": "identity"},
    "learnable scalar": {"kind": "learnable"},
    "learnable matrix": {"kind": "learnable", "weight": "matrix"},
    "DenseFormer": {"kind": "denseformer"},
    "ANCRe": {"kind": "ancre"},
    "DeRes half": {"kind": "deres"},
    "DeRes half, softmax": {"kind": "deres", "activation": "softmax"},
    "DeRes full": {"kind": "deres", "width": {"kind": "full"}},
    "AttnRes, 8 blocks": {"kind": "attention_residual", "block_size": 2},
    "AttnRes, full": {"kind": "attention_residual", "block_size": 1},
    "HC static": {"kind": "hyper_connections", "coefficients": {"kind": "static"}},
    "HC dynamic": {"kind": "hyper_connections"},
    "mHC": {"kind": "mhc"},
    "MUDD, 1 stream": {"kind": "mudd", "num_streams": 1},
    "MUDD, 4 streams": {"kind": "mudd"},
}


COMPILED = ("identity", "DeRes half", "DeRes full", "AttnRes, 8 blocks", "DenseFormer")
"""What is also measured under torch.compile, which takes a minute for each."""


def run(out: Path, *, rounds: int, threads: int) -> None:
    """Measure all connections and write one result file."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(ROWS, TOKENS, DIM)
    stacks = {name: _stack(settings) for name, settings in CONNECTIONS.items()}
    steps = {
        "eager": stacks,
        "compiled": {name: torch.compile(stacks[name]) for name in COMPILED},
    }
    seconds: dict[str, dict[str, list[float]]] = {
        mode: {name: [] for name in modules} for mode, modules in steps.items()
    }
    for turn in range(rounds + 1):  # the first warms up
        for mode, modules in steps.items():
            for name, module in modules.items():
                elapsed = _step(module, x)
                if turn:
                    seconds[mode][name].append(elapsed)
    results = []
    for name, stack in stacks.items():
        result: dict[str, Any] = {"connection": name, **_cost(stack, x)}
        for mode, times in seconds.items():
            if name not in times:
                continue
            result[f"{mode}_seconds"] = statistics.median(times[name])
            ratios = [a / b for a, b in zip(times[name], times["identity"], strict=True)]
            result[f"{mode}_ratio"] = statistics.median(ratios)
        results.append(result)
    base = results[0]
    for result in results:
        for key in ("saved_bytes", "flops"):
            result[f"{key}_ratio"] = result[key] / base[key]
    document = {
        "kind": "connections",
        "what": f"forward and backward of {LAYERS} Transformer layers by connection, dim {DIM}, "
        f"{TOKENS} tokens, {ROWS} rows, float32",
        "settings": CONNECTIONS,
        "rounds": rounds,
        "results": results,
        **describe_machine(threads),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def _stack(settings: dict[str, Any]) -> nn.Module:
    from rankloom.data.examples import example_schema
    from rankloom.ranking.transformer import Transformer, TransformerConfig

    config = TransformerConfig.model_validate(
        {"dim": DIM, "num_layers": LAYERS, "num_heads": HEADS, "connection": settings}
    )
    stack = Transformer(config, example_schema()).stack
    with torch.no_grad():
        for parameter in stack.parameters():  # past the start, where weights are zero
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return stack


def _step(stack: nn.Module, x: Tensor) -> float:
    stack.zero_grad()
    source = x.clone().requires_grad_()
    start = time.perf_counter()
    stack(source, None).sum().backward()
    return time.perf_counter() - start


def _cost(stack: nn.Module, x: Tensor) -> dict[str, float]:
    from rankloom.evaluation.cost import OperationCounter

    with torch.no_grad(), OperationCounter() as counter:
        stack(x, None)
    there = {parameter.untyped_storage().data_ptr() for parameter in stack.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = stack(x, None)
    saved = sum(storage.nbytes() for place, storage in kept.items() if place not in there)
    del out  # it owned the graph
    return {
        "flops": counter.flops,
        "saved_bytes": saved,
        "parameters": sum(parameter.numel() for parameter in stack.parameters()),
    }
