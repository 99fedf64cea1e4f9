import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.batch import Batch
from rankloom.layers.losses import next_event_loss, ranking_loss, task_losses


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


def test_the_next_event_is_told_from_the_only_other_one_by_hand():
    mask = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    states = torch.tensor(
        [[[9.0, 9.0], [1.0, 2.0], [9.0, 9.0]], [[9.0, 9.0]] * 3, [[9.0, 9.0]] * 3]
    )
    events = torch.zeros(3, 3, 2)
    events[0, 2] = torch.tensor([3.0, -1.0])  # product 1 with the state before it
    events[1, 2] = torch.tensor([0.0, 0.25])  # product 0.5: the only event of other rows
    expected = math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.5))
    assert next_event_loss(states, events, mask).item() == pytest.approx(expected)
    right = [part.roll(-1, dims=1) for part in (states, events, mask)]  # padding elsewhere
    assert next_event_loss(*right).item() == pytest.approx(expected)


def test_another_comparison_of_state_and_event_takes_the_inner_product_s_place():
    torch.manual_seed(0)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    states, events = torch.randn(2, 3, 2), torch.randn(2, 3, 4)
    matrix = torch.randn(2, 4)
    loss = next_event_loss(states, events, mask, lambda s, e: ((s @ matrix) * e).sum(-1))
    torch.testing.assert_close(loss, next_event_loss(states @ matrix, events, mask))


@pytest.mark.parametrize("row", [0, 1, 3])
def test_the_other_event_is_any_real_one_of_other_rows(row):
    """At products of zero a state adds -1/2 to its next event's gradient, +1/2 to the other's."""
    torch.manual_seed(0)
    lengths = torch.tensor([4, 3, 0, 2])
    mask = torch.arange(4, 0, -1) <= lengths[:, None]  # [rows, events]
    pairs, own = int((lengths - 1).clamp(min=0).sum()), int(lengths[row]) - 1
    states = torch.zeros(4, 4, 1)
    states[row] = 1.0
    drawn = torch.zeros(4, 4)
    for _ in range(300):
        events = torch.zeros(4, 4, 1, requires_grad=True)
        next_event_loss(states, events, mask).backward()
        drawn += events.grad.squeeze(2) * 2 * pairs
    following = torch.zeros(4)
    following[4 - own :] = -300.0
    torch.testing.assert_close(drawn[row], following)
    others = mask.clone()
    others[row] = False
    assert not drawn[~mask].any()
    expected = 300 * own / int(others.sum())
    assert (drawn[others] - expected).abs().max() < 5 * expected**0.5
    assert drawn[others].sum().item() == pytest.approx(300 * own, rel=1e-4)


@pytest.mark.parametrize("lengths", [[], [3], [0, 0], [0, 3], [1, 1]])
def test_without_two_events_or_another_row_there_is_nothing_to_tell(lengths):
    mask = torch.arange(3, 0, -1) <= torch.tensor(lengths, dtype=torch.int64)[:, None]
    states = torch.randn(len(lengths), 3, 2, requires_grad=True)
    loss = next_event_loss(states, torch.randn(len(lengths), 3, 2), mask)
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()


def test_rows_of_no_weight_tell_no_next_event():
    generator = torch.Generator().manual_seed(0)
    states, events = (torch.randn(3, 4, 2, generator=generator) for _ in range(2))
    mask = torch.ones(3, 4, dtype=torch.bool)

    def loss(weight):
        torch.manual_seed(0)
        return next_event_loss(states, events, mask, weight=weight)

    alone = torch.tensor([0.0, 2.0, 0.0])
    rows = [loss(torch.eye(3)[row]) for row in range(3)]
    torch.testing.assert_close(loss(alone), rows[1])
    torch.testing.assert_close(loss(torch.tensor([1.0, 3.0, 0.0])), (rows[0] + 3 * rows[1]) / 4)
    torch.testing.assert_close(loss(None), torch.stack(rows).mean())
    assert loss(torch.zeros(3)) == 0


def test_a_batch_without_rows_has_no_loss():
    batch = Batch(torch.empty(0, 1, dtype=torch.int32), torch.empty(0, 0), labels=torch.empty(0, 2))
    assert ranking_loss(torch.empty(0, 2), batch).total == 0
