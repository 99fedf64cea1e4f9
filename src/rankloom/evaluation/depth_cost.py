"""What every depth of a model costs, counted on real rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation.cost import OperationCounter
from rankloom.evaluation.protocol import Precision, autocast, evaluation_mode
from rankloom.protocols import HasDepths, HasDepthSteps


class DepthCosts(Config):
    """Floating-point operations per row, by depth; counted as `rankloom.evaluation.cost` does."""

    fixed: tuple[float, ...]
    """Of a prediction at each depth, which reads no logits on the way to it."""
    adaptive: tuple[float, ...]
    """Of a prediction that reads the logits of every depth up to it, as policies do. What a policy
    computes of the logits is left out: some tens of operations per row and depth."""
    stepped: bool
    """Whether the model can be stepped, so that `fixed` is counted on its own. Otherwise it is
    `adaptive`, and too high by the logits of the depths before."""


def measure_depth_costs(
    model: nn.Module, batch: Batch, *, precision: Precision = "float32"
) -> DepthCosts:
    """Count the operations of every depth.

    Args:
        model: a model with depths; it is left as it was.
        batch: some rows, on the model's device.
        precision: as in training.

    Raises:
        ValueError: the batch has no rows.
        TypeError: the model has no depths.
    """
    if batch.size == 0:
        raise ValueError("cost is measured on a batch with rows; got one of 0 rows")
    if not isinstance(model, HasDepths):
        raise TypeError(f"{type(model).__name__} has no depths: it lacks num_depths, depth_logits")
    rows = batch.without_labels()

    def count(run: Callable[..., Any], *given: Any) -> tuple[float, Any]:
        with OperationCounter() as counter:
            result = run(*given)
        return counter.flops / batch.size, result

    with (
        evaluation_mode(model),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        autocast(batch.categorical.device, precision),
    ):
        adaptive = tuple(
            count(model.depth_logits, rows, depth + 1)[0] for depth in range(model.num_depths)
        )
        if not isinstance(model, HasDepthSteps):
            return DepthCosts(fixed=adaptive, adaptive=adaptive, stepped=False)
        fixed = []
        spent, state = count(model.start_depths, rows)
        for depth in range(model.num_depths):
            if depth:
                cost, state = count(model.next_depth, state)
                spent += cost
            fixed.append(spent + count(model.state_logits, state)[0])
    return DepthCosts(fixed=tuple(fixed), adaptive=adaptive, stepped=True)
