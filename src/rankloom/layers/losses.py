"""Losses of rankers: binary cross-entropy of logits, masked and weighted.

Per task, the mean over rows whose label is known, weighted by the rows' weights:

    L_t = sum_i m_it w_i BCE(z_it, y_it) / sum_i m_it w_i

where m is the label mask and w the weight (both 1 when the batch has none). The total is the sum
over tasks. A task of which the batch knows no label (or only rows of weight 0) contributes 0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
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
        return each.sum(0) / max(len(each), 1)
    return known_mean(each, batch)


def known_mean(each: Float[Tensor, "batch tasks"], batch: Batch) -> Float[Tensor, " tasks"]:
    """Mean of every task's terms over the rows whose label is known, weighted by the rows' weights.

    Args:
        each: one term for every row and task, such as an objective of a model's own.
        batch: the rows, whose label mask and weights count; where it has none, all count alike.

    Returns:
        The means; 0 for a task of which no row of any weight is known.
    """
    share = torch.ones_like(each)
    if batch.weight is not None:
        share = share * batch.weight.unsqueeze(1)
    if batch.label_mask is not None:
        share = share * batch.label_mask
        each = each.masked_fill(~batch.label_mask, 0.0)
    total = share.sum(0)
    return (each * share).sum(0) / torch.where(total > 0, total, torch.ones_like(total))


def next_event_loss(
    states: Float[Tensor, "batch events state_dim"],
    events: Float[Tensor, "batch events dim"],
    mask: Bool[Tensor, "batch events"],
    compare: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """How well the state of each event tells the event after it from one of another row.

    Source: Zhou et al., AAAI 2019, arXiv:1809.03672 (DIEN), equation 6: the mean over all pairs of
    a state and the event after it of

        -ln sigmoid(<state, next event>) - ln(1 - sigmoid(<state, other event>))

    The paper samples other items than the one that was clicked. Here the other event is drawn among
    all real events of the batch's other rows, all equally likely, from torch's default generator;
    its vector is trained too. Computed in float32 whatever the precision of the states.

    Args:
        states: what a model knows after each event.
        events: the events' own vectors.
        mask: True at real events, which stand side by side.
        compare: scores of states [batch, events - 1, state_dim] and as many events, without their
            last axis; None: inner products, of equal widths.
        weight: weights of the rows; None: all alike.

    Returns:
        The mean; 0 where no row of any weight has two events or only one row has any.
    """
    counts = mask.sum(1)
    ends = counts.cumsum(0)
    others = (ends[-1:] - counts)[:, None]  # [batch, 1]: real events of the other rows
    # Real events are numbered over all rows. A draw among the others leaves out the row's own.
    drawn = (torch.rand(mask.shape, device=mask.device) * others).long()
    drawn = torch.minimum(drawn, others - 1)  # a product may round up
    own = drawn >= (ends - counts)[:, None]
    drawn = drawn + own * counts[:, None]
    place = torch.searchsorted(mask.flatten().cumsum(0), (drawn + 1).flatten())
    other = events.flatten(0, 1).index_select(0, place).view_as(events)
    score = _inner_product if compare is None else compare
    before = states[:, :-1]
    each = F.softplus(-score(before, events[:, 1:]).float())
    each = each + F.softplus(score(before, other[:, 1:]).float())
    known = mask[:, :-1] & mask[:, 1:] & (others > 0)
    share = known.float() if weight is None else known * weight.unsqueeze(1)
    total = share.sum()
    # Padding has no gradient, whatever its scores are.
    return (each.masked_fill(~known, 0.0) * share).sum() / torch.where(total > 0, total, 1.0)


def _inner_product(
    states: Float[Tensor, "batch events dim"], events: Float[Tensor, "batch events dim"]
) -> Float[Tensor, "batch events"]:
    return (states.float() * events.float()).sum(-1)
