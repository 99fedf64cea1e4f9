"""Policies that stop rows, and predictions under them."""

import math

import pytest
import torch
from depth_models import LoopedNetwork, SteppedNetwork

from rankloom.data.examples import example_schema, random_batch
from rankloom.evaluation.adaptive import predict_adaptively
from rankloom.evaluation.depth_policy import (
    ChangeExit,
    Ensemble,
    EntropyExit,
    HaltingExit,
    HaltingUnit,
    apply_policy,
    entropy,
    halting_features,
    read_policy,
)
from rankloom.protocols import HasDepths, HasDepthSteps


def logits(*depths: list[float]) -> torch.Tensor:
    """[depths, rows, 1] from probabilities."""
    return torch.logit(torch.tensor(depths, dtype=torch.float64)).unsqueeze(-1)


THREE = logits([0.5, 0.2, 0.9], [0.55, 0.4, 0.91], [0.7, 0.41, 0.6])
UNIT = HaltingUnit(weights=(1.0, 0.0), bias=0.0)
DEEPER = HaltingUnit(weights=(0.0, 1.0, 2.0, 0.0, 0.0), bias=-1.0)
POLICIES = [
    ChangeExit(threshold=0.05),
    EntropyExit(threshold=0.6),
    HaltingExit(threshold=0.4, units=(UNIT, DEEPER)),
    Ensemble(weights=(0.5, 0.25)),
    Ensemble(weights=(0.2, 0.3, 0.1)),
]


def test_change_stops_where_a_further_depth_changed_little():
    policy = ChangeExit(threshold=0.06)
    assert policy.signal(THREE[:1]).tolist() == [math.inf] * 3
    assert policy.signal(THREE[:2]).tolist() == pytest.approx([0.05, 0.2, 0.01])
    chosen, depth = apply_policy(policy, THREE)
    assert depth.tolist() == [1, 2, 1]
    assert torch.sigmoid(chosen[:, 0]).tolist() == pytest.approx([0.55, 0.41, 0.91])


def test_entropy_stops_where_the_prediction_is_sure():
    expected = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.5, 0.2, 0.9)]
    policy = EntropyExit(threshold=0.51)
    assert policy.signal(THREE[:1]).tolist() == pytest.approx(expected)
    chosen, depth = apply_policy(policy, THREE)
    assert depth.tolist() == [2, 0, 0]
    assert torch.sigmoid(chosen[:, 0]).tolist() == pytest.approx([0.7, 0.2, 0.9])
    assert entropy(torch.tensor([0.0, 800.0, -800.0])).tolist() == pytest.approx(
        [math.log(2), 0, 0]
    )


def test_halting_is_a_logistic_regression_of_each_depth():
    policy = POLICIES[2]
    p = torch.sigmoid(THREE[..., 0])
    assert policy.signal(THREE[:1]).tolist() == pytest.approx(p[0].tolist())
    second = torch.sigmoid(THREE[1, :, 0] + 2 * (p[1] - p[0]) - 1)
    assert policy.signal(THREE[:2]).tolist() == pytest.approx(second.tolist())
    assert policy.signal(THREE).tolist() == [0.0] * 3
    _, depth = apply_policy(policy, THREE)
    assert depth.tolist() == [1, 0, 2]


def test_features_are_logits_changes_and_entropies_of_every_task():
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = halting_features(z)
    assert found.shape == (5, 15)
    p = torch.sigmoid(z.double())
    for row in range(5):
        by_hand = []
        for kind in (z.double(), p[1:] - p[:1], entropy(z.double())):
            by_hand += [kind[depth, row, task] for depth in range(len(kind)) for task in range(3)]
        assert found[row].tolist() == pytest.approx([float(value) for value in by_hand])


def test_a_row_stops_when_all_its_tasks_would():
    z = torch.cat([THREE, logits([0.5, 0.5, 0.5], [0.9, 0.9, 0.51], [0.9, 0.9, 0.51])], -1)
    _, depth = apply_policy(ChangeExit(threshold=0.06), z)
    assert depth.tolist() == [2, 2, 1]
    _, depth = apply_policy(EntropyExit(threshold=0.51), z)
    assert depth.tolist() == [2, 2, 2]


def test_an_ensemble_is_a_weighted_sum_of_its_depths():
    chosen, depth = apply_policy(Ensemble(weights=(0.5, 0.25)), THREE)
    assert depth.tolist() == [1, 1, 1]
    assert torch.allclose(chosen, 0.5 * THREE[0] + 0.25 * THREE[1])
    with pytest.raises(ValueError, match="an ensemble of 4 depths needs the logits of as many"):
        apply_policy(Ensemble(weights=(1, 1, 1, 1)), THREE)
    with pytest.raises(ValueError, match="needs a weight above 0; all are 0"):
        Ensemble(weights=(0, 0))


def test_the_extremes_stop_all_rows_or_none():
    assert apply_policy(EntropyExit(threshold=1), THREE)[1].tolist() == [0, 0, 0]
    for policy in (ChangeExit(threshold=0), EntropyExit(threshold=0)):
        chosen, depth = apply_policy(policy, THREE)
        assert depth.tolist() == [2, 2, 2]
        assert torch.equal(chosen, THREE[-1])
    with pytest.raises(ValueError, match="needs the logits of a depth at least; got none"):
        apply_policy(ChangeExit(threshold=0), THREE[:0])


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_json_holds_a_policy_whole(policy):
    assert read_policy(policy.model_dump_json()) == policy
    with pytest.raises(ValueError, match="kind"):
        read_policy('{"kind": "luck"}')


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_stepping_predicts_what_all_depths_do(policy, rows):
    # Halting units above are of one task.
    schema = example_schema(num_tasks=1)
    batch = random_batch(schema, rows=rows)
    model, plain = SteppedNetwork(schema), LoopedNetwork(schema)
    assert isinstance(model, HasDepthSteps)
    assert isinstance(plain, HasDepths)
    assert not isinstance(plain, HasDepthSteps)
    with torch.inference_mode():
        stepped = predict_adaptively(model, batch, policy)
        whole = predict_adaptively(plain, batch, policy)
        _, expected = apply_policy(policy, model.depth_logits(batch))
    assert torch.equal(stepped.depth, whole.depth)
    assert torch.equal(stepped.depth, expected)
    assert torch.allclose(stepped.logits, whole.logits, atol=1e-6)
    assert stepped.logits.shape == (rows, 1)
    # Rows that have stopped are not computed any more.
    running = [int((expected >= depth).sum()) for depth in range(3)]
    assert model.rows == [rows] + [count for count in running[1:] if count]


def test_rows_of_several_tasks_stop_one_by_one():
    schema = example_schema(num_tasks=2)
    batch = random_batch(schema, rows=64)
    model = SteppedNetwork(schema)
    with torch.inference_mode():
        found = predict_adaptively(model, batch, ChangeExit(threshold=0.2))
    assert len(set(found.depth.tolist())) == 2
    assert model.rows[:2] == [64, 64]
    assert 0 < model.rows[2] < 64
