"""Predictions that stop computing a row once its policy stops it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.batch import Batch
from rankloom.evaluation.depth_policy import DepthPolicy, apply_policy
from rankloom.protocols import HasDepths, HasDepthSteps


@dataclass(frozen=True)
class AdaptivePrediction:
    """What was predicted, and how deep each row went."""

    logits: Float[Tensor, "batch tasks"]
    """Logits of every task."""
    depth: Int[Tensor, " batch"]
    """int64: the depth each row stopped at, 0 being the shallowest."""


def predict_adaptively(model: HasDepths, batch: Batch, policy: DepthPolicy) -> AdaptivePrediction:
    """Score a batch under a policy.

    A model that is `HasDepthSteps` computes a depth for those rows only that have not stopped: they
    go on as a smaller batch. Any other model computes all depths, and the policy only chooses.
    Modes and gradients are left to the caller: evaluation mode and `torch.inference_mode` as for
    any prediction.

    Args:
        model: in evaluation mode.
        batch: rows, on the model's device; labels are not read.
        policy: what stops a row.

    Returns:
        Logits and depths in the order of the batch.
    """
    if not isinstance(model, HasDepthSteps):
        return AdaptivePrediction(*apply_policy(policy, model.depth_logits(batch)))
    state = model.start_depths(batch)
    seen = model.state_logits(state)[None]  # [depths so far, running rows, tasks]
    running = torch.arange(batch.size, device=seen.device)
    logits = torch.empty_like(seen[0])  # [batch, tasks]
    depth = torch.zeros_like(running)
    for last in range(model.num_depths):
        if last == model.num_depths - 1:
            stops = torch.ones_like(running, dtype=torch.bool)
        else:
            stops = policy.stop(seen)
        if stops.any():
            logits[running[stops]] = policy.combine(seen[:, stops])
            depth[running[stops]] = last
            going = (~stops).nonzero().flatten()
            running, seen = running[going], seen[:, going]
            if len(running):
                state = model.select_rows(state, going)
        if not len(running):
            break
        state = model.next_depth(state)
        seen = torch.cat([seen, model.state_logits(state)[None]])
    return AdaptivePrediction(logits, depth)
