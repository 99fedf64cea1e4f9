import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.batch import Batch
from rankloom.layers.losses import ranking_loss, task_losses


def batch_of(labels, mask=None, weight=None):
    rows = len(labels)
    return Batch(
        categorical=torch.zeros(rows, 0, dtype=torch.int32),
        numeric=torch.zeros(rows, 0),
        labels=torch.tensor(labels),
        label_mask=None if mask is None else torch.tensor(mask),
        weight=None if weight is None else torch.tensor(weight),
    )


def slow_loss(logits, labels, mask, weight):
    total = 0.0
    for task in range(len(logits[0])):
        numerator = denominator = 0.0
        for row in range(len(logits)):
            if not mask[row][task]:
                continue
            p = 1 / (1 + math.exp(-logits[row][task]))
            y = labels[row][task]
            numerator -= weight[row] * (y * math.log(p) + (1 - y) * math.log(1 - p))
            denominator += weight[row]
        total += numerator / denominator if denominator else 0.0
    return total


def test_plain_mean_by_hand():
    loss = ranking_loss(torch.tensor([[0.0], [math.log(3.0)]]), batch_of([[1.0], [0.0]]))
    assert loss.total.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert loss.parts == {}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), tasks=st.integers(1, 3))
def test_masked_and_weighted_equals_loops(seed, rows, tasks):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tasks, generator=generator)
    mask = torch.rand(rows, tasks, generator=generator) < 0.6
    labels = (torch.rand(rows, tasks, generator=generator) < 0.5).float() * mask
    weight = torch.randint(0, 3, (rows,), generator=generator).float()
    batch = batch_of(labels.tolist(), mask.tolist(), weight.tolist())
    expected = slow_loss(logits.tolist(), labels.tolist(), mask.tolist(), weight.tolist())
    loss = ranking_loss(logits, batch)
    assert loss.total.item() == pytest.approx(expected, abs=1e-6)
    assert sum(part.item() for part in loss.parts.values()) == pytest.approx(
        expected if tasks > 1 else 0.0, abs=1e-6
    )


def test_task_without_labels_gives_zero_and_no_gradient():
    logits = torch.tensor([[1.0, 2.0], [-1.0, 50.0]], requires_grad=True)
    mask = [[True, False], [True, False]]
    loss = ranking_loss(logits, batch_of([[1.0, 0.0], [0.0, 0.0]], mask))
    loss.total.backward()
    assert loss.parts["task_1"].item() == 0.0
    assert logits.grad[:, 1].tolist() == [0.0, 0.0]
    assert logits.grad[:, 0].abs().min() > 0


def test_missing_label_with_infinite_loss_does_not_spread():
    logits = torch.tensor([[1.0], [math.inf]])
    loss = ranking_loss(logits, batch_of([[1.0], [0.0]], [[True], [False]]))
    assert loss.total.item() == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_bfloat16_logits_are_computed_in_float32():
    logits = torch.tensor([[0.5], [3.0]], dtype=torch.bfloat16)
    loss = ranking_loss(logits, batch_of([[1.0], [1.0]])).total
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss([[0.5], [3.0]], [[1], [1]], [[1], [1]], [1, 1]))


def test_errors():
    batch = batch_of([[1.0], [0.0]])
    with pytest.raises(ValueError, match="the loss needs labels"):
        ranking_loss(torch.zeros(2, 1), batch.without_labels())
    with pytest.raises(ValueError, match=r"got logits \(2,\) for labels \(2, 1\)"):
        ranking_loss(torch.zeros(2), batch)


def test_soft_targets_worked_by_hand():
    logits = torch.tensor([[math.log(3.0)], [0.0]])  # probabilities 3/4 and 1/2
    targets = torch.tensor([[0.25], [1.0]], requires_grad=True)
    batch = batch_of([[1.0], [0.0]], weight=[1.0, 3.0])
    losses = task_losses(logits, batch, targets)
    first = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert losses.tolist() == pytest.approx([(first + 3 * math.log(2)) / 4])
    losses.sum().backward()
    assert targets.grad[:, 0].tolist() == pytest.approx([-math.log(3) / 4, 0.0])


def test_soft_targets_count_where_labels_are_known():
    logits, targets = torch.zeros(2, 2), torch.tensor([[0.5, 0.1], [0.5, math.nan]])
    batch = batch_of([[1.0, 1.0], [0.0, 0.0]], [[True, True], [True, False]])
    assert task_losses(logits, batch, targets).tolist() == pytest.approx([math.log(2)] * 2)


def test_losses_of_tasks_add_up_to_the_ranking_loss():
    logits, batch = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), batch_of([[1.0, 1.0], [0.0, 1.0]])
    losses, whole = task_losses(logits, batch), ranking_loss(logits, batch)
    assert torch.equal(whole.total, losses.sum())
    assert [whole.parts["task_0"], whole.parts["task_1"]] == losses.tolist()
