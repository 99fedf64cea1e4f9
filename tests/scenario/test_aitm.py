import math

import pytest
import torch
from funnel_batches import FUNNEL, SMALL, bce, funnel_batch, spread
from torch import Tensor

from rankloom.config import parse_config
from rankloom.scenario.aitm import AITM, AITMConfig
from rankloom.scenario.funnel import entire_space, joint_logits


def build(**settings: object) -> AITM:
    torch.manual_seed(0)
    return spread(AITM(parse_config(AITMConfig, SMALL | settings, "test"), FUNNEL))


def slow_joint(model: AITM, hidden: Tensor) -> list[Tensor]:
    """The logits of one row, as the paper's equations stand."""
    units = model.towers[0](hidden)
    logits = [model.heads[0](units)]
    for task in (1, 2):
        part = model.transfers[task - 1]
        vectors = [part.hand_on(units).relu(), model.towers[task](hidden)]
        scores = [
            (part.query(u) * part.key(u)).sum() / math.sqrt(vectors[1].numel()) for u in vectors
        ]
        total = sum(score.exp() for score in scores)
        pairs = zip(scores, vectors, strict=True)
        units = sum(score.exp() / total * part.value(u) for score, u in pairs)
        logits.append(model.heads[task](units))
    return logits


def test_every_task_attends_to_what_the_one_before_hands_on() -> None:
    model, batch = build().eval(), funnel_batch(7)
    hidden = model.bottom(batch)
    expected = [torch.cat(slow_joint(model, hidden[row])) for row in range(7)]
    torch.testing.assert_close(model.joint(batch), torch.stack(expected))


def test_scores_of_coming_far_stand_in_the_logits_that_it_gives() -> None:
    model = build()
    batch = funnel_batch(400)
    joint = model.joint(batch).double()
    probability = joint.sigmoid()
    read = probability[:, 1:] < 0.95 * probability[:, :-1]
    assert read.any()
    assert not read.all()  # the rest contradict each other, as towers of their own may
    consistent = read.all(1)
    conditional = model(batch).double()
    torch.testing.assert_close(
        joint_logits(conditional)[consistent], joint[consistent], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        conditional.sigmoid()[consistent, 1:],
        (probability[:, 1:] / probability[:, :-1])[consistent],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_loss_as_the_paper_writes_it(weight: float) -> None:
    model, batch = build(calibrator_weight=weight), funnel_batch()
    loss = model.loss(batch)
    space = entire_space(batch)
    probability = model.joint(batch).double().sigmoid()
    labels, calibrator = 0.0, 0.0
    for task in range(3):
        rows = [row for row in range(batch.size) if space.label_mask[row, task]]
        terms = [batch.weight[r] * bce(probability[r, task], space.labels[r, task]) for r in rows]
        labels = labels + sum(terms) / batch.weight[rows].sum()
    for task in (1, 2):
        for row in range(batch.size):
            excess = max(probability[row, task] - probability[row, task - 1], torch.zeros(()))
            calibrator = calibrator + batch.weight[row] * excess / batch.weight.sum()
    assert calibrator > 0
    torch.testing.assert_close(loss.parts["calibrator"].double(), calibrator.double())
    torch.testing.assert_close(loss.total.double(), (labels + weight * calibrator).double())


def test_the_calibrator_pulls_contradicting_probabilities_apart() -> None:
    batch = funnel_batch(200)

    def excess(weight: float) -> float:
        model = build(calibrator_weight=weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(15):
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        return model.loss(batch).parts["calibrator"].item()

    assert excess(5.0) < 0.5 * excess(0.0)
