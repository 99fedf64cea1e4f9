"""One training step of DLF, its parts timed apart."""

import json
import sys
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.worker import serve

SETTINGS: dict[str, Any] = {
    "embedding_dim": 16,
    "num_tokens": 8,
    "streams": [
        {"kind": "low_order", "rank": 8},
        {"kind": "current_order", "rank": 8},
        {"kind": "implicit"},
    ],
}
"""DLF's settings in its own sweeps."""

IDS_PER_FIELD = 1_000
"""Small tables: their optimizer's time is the same at every depth, and measured elsewhere."""


def main(arguments: SimpleNamespace) -> None:
    from rankloom.batch import Batch
    from rankloom.catalog import build_model, lookup
    from rankloom.evaluation.cost import measure_cost
    from rankloom.layers.losses import ranking_loss
    from rankloom.schema import CategoricalField, Label, Schema

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    names = [f"C{field}" for field in range(arguments.fields)]
    schema = Schema(
        tables=dict.fromkeys(names, IDS_PER_FIELD),
        categorical=tuple(CategoricalField(name=name, table=name) for name in names),
        labels=(Label(name="label"),),
    )
    config = lookup("dlf").config.model_validate(SETTINGS | {"num_layers": arguments.layers})
    model = build_model("dlf", config, schema)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows = arguments.batch_size
    batch = Batch(
        categorical=torch.randint(2, IDS_PER_FIELD, (rows, arguments.fields), dtype=torch.int32),
        numeric=torch.empty(rows, 0),
        labels=torch.randint(0, 2, (rows, 1)).float(),
    )

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        loss = ranking_loss(model(batch), batch).total
        times.append(time.perf_counter())
        optimizer.zero_grad()
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        spans = [after - before for before, after in pairwise(times)]
        keys = ("forward_seconds", "backward_seconds", "optimizer_seconds")
        return dict(zip(keys, spans, strict=True)) | {"step_seconds": times[-1] - times[0]}

    def cost() -> dict[str, Any]:
        return measure_cost(model, batch).model_dump()

    serve({"step": step, "cost": cost})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
