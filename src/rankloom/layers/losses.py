"""Losses of rankers: binary cross-entropy of logits, masked and weighted.

Per task, the mean over rows whose label is known, weighted by the rows' weights:

    L_t = sum_i m_it w_i BCE(z_it, y_it) / sum_i m_it w_i

where m is the label mask and w the weight (both 1 when the batch has none). The total is the sum
over tasks. A task of which the batch knows no label (or only rows of weight 0) contributes 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rankloom.batch import Batch
from rankloom.protocols import Loss


def ranking_loss(logits: Float[Tensor, "batch tasks"], batch: Batch) -> Loss:
    """The loss of a ranker without an objective of its own: the sum over tasks.

    Computed in float32 whatever the precision of the logits.

    Args:
        logits: scores before the sigmoid, one column per task.
        batch: the rows the logits belong to; it must carry labels.

    Returns:
        The sum over tasks, and with several tasks the loss of each as `task_0`, `task_1` ...

    Raises:
        ValueError: the batch has no labels, or the logits have another shape than the labels.
    """
    losses = task_losses(logits, batch)
    if losses.shape[0] == 1:
        return Loss(losses[0])
    return Loss(losses.sum(), {f"task_{task}": loss for task, loss in enumerate(losses.unbind())})


def task_losses(
    logits: Float[Tensor, "batch tasks"],
    batch: Batch,
    targets: Float[Tensor, "batch tasks"] | None = None,
) -> Float[Tensor, " tasks"]:
    """Loss of every task, for a model with several logits; the rule stands in the module's doc.

    Computed in float32 whatever the precision of the logits.

    Args:
        logits: scores before the sigmoid, one column per task.
        batch: the rows the logits belong to; it must carry labels, whose mask and weights count
            whatever the targets are.
        targets: probabilities to meet in place of the labels, as another model's or part's scores;
            gradients flow into them unless they are detached.

    Raises:
        ValueError: the batch has no labels, or the logits have another shape than the labels.
    """
    labels = batch.labels
    if labels is None:
        raise ValueError("the loss needs labels; got a batch without them")
    if logits.shape != labels.shape:
        raise ValueError(
            "logits must have one column per task; "
            f"got logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
        )
    wanted = labels if targets is None else targets.float()
    each = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    if batch.label_mask is None and batch.weight is None:
        return each.mean(0)
    return _known_mean(each, batch)


def _known_mean(each: Float[Tensor, "batch tasks"], batch: Batch) -> Float[Tensor, " tasks"]:
    share = torch.ones_like(each)
    if batch.weight is not None:
        share = share * batch.weight.unsqueeze(1)
    if batch.label_mask is not None:
        share = share * batch.label_mask
        each = each.masked_fill(~batch.label_mask, 0.0)
    total = share.sum(0)
    return (each * share).sum(0) / torch.where(total > 0, total, torch.ones_like(total))
