"""How alike the weights are that a model generates for its scenarios.

For every generated layer of MI-DPG the matrices M of the known scenarios, flattened, are compared
by cosine similarity: 1 where all scenarios have the same weights but for the strength. Where rows
have conditions of their own, a scenario's M is the mean over its rows. Unlike the weights in full,
M holds nothing that the scenarios share by construction.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation.protocol import evaluation_mode
from rankloom.runs.record import Number
from rankloom.scenario.mi_dpg import MIDPG


class GeneratedWeights(Config):
    """One generated layer of one run."""

    run: str
    """Label of the run."""
    layer: str
    """Path of the layer in the backbone."""
    scenarios: tuple[str, ...]
    """Known scenarios, in the schema's order."""
    cosine: tuple[tuple[Number, ...], ...]
    """Cosine similarity of every pair; NaN where a scenario has no rows or generates zeros."""
    mean: Number
    """Mean over the pairs of two scenarios that have one; NaN where no pair has."""


@torch.no_grad()
def generated_similarity(
    model: nn.Module,
    batches: Iterable[Batch],
    scenarios: Sequence[str],
    *,
    run: str,
    device: str | torch.device = "cpu",
) -> list[GeneratedWeights]:
    """Compare what a model generates for its scenarios.

    Args:
        model: a model, already on `device`; in evaluation mode while it is looked at.
        batches: rows to average conditions over; not read where the scenario alone conditions.
        scenarios: names of the known scenarios.
        run: label that the results carry.
        device: where the batches are moved to.

    Returns:
        One per generated layer; an empty list for other models than MI-DPG.
    """
    if not isinstance(model, MIDPG):
        return []
    with evaluation_mode(model):
        if model.condition.by_row:
            generated = _mean_generated(model, batches, torch.device(device))
        else:
            generated = model.generated(model.condition.scenarios.weight)
    results = []
    layers = model.generated_layers().items()
    for (path, layer), numbers in zip(layers, torch.split(generated, model.sizes, 1), strict=True):
        matrices = layer.fusion.generated_matrices(numbers).double().flatten(1)
        cosine = _cosine(matrices).tolist()
        pairs = [value for row, line in enumerate(cosine) for value in line[:row]]
        known = [value for value in pairs if not math.isnan(value)]
        results.append(
            GeneratedWeights(
                run=run,
                layer=path,
                scenarios=tuple(scenarios),
                cosine=tuple(map(tuple, cosine)),
                mean=sum(known) / len(known) if known else math.nan,
            )
        )
    return results


def _mean_generated(model: MIDPG, batches: Iterable[Batch], device: torch.device) -> Tensor:
    """What is generated for a scenario's rows, mean over them: [scenarios, numbers].

    M is linear in it, so this is the mean of M too. NaN for a scenario without rows.
    """
    total = torch.zeros(model.num_scenarios + 1, sum(model.sizes), device=device)
    count = torch.zeros(model.num_scenarios + 1, device=device)
    for batch in batches:
        given = model.condition(batch.to(device), model.backbone)
        total.index_add_(0, given.scenario, model.generated(given.vectors))
        count += torch.bincount(given.scenario, minlength=len(count))
    return total[1:] / count[1:, None]


def _cosine(rows: Tensor) -> Tensor:
    unit = functional.normalize(rows, dim=1, eps=0.0)  # zeros have no direction: NaN
    return unit @ unit.T
