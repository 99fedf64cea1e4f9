import copy

import pytest
import torch
from torch import Tensor, nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import ranking_loss
from rankloom.layers.mlp import MLP
from rankloom.scenario.adasparse import (
    AdaSparse,
    AdaSparseConfig,
    Binarization,
    Bounds,
    Fusion,
    Scaling,
)

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {"hidden": [8, 5], "embedding_dim": 4}
V = torch.tensor([[-3.0, 0.0, 1.0]])
S = torch.sigmoid(V)  # 0.047, 0.5, 0.731
ZERO = torch.tensor(0)


def build(randomised: bool = True, **settings: object) -> AdaSparse:
    torch.manual_seed(0)
    model = AdaSparse(parse_config(AdaSparseConfig, SMALL | settings, "test"), SCHEMA)
    if randomised:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Binarization(threshold=0.1), [0.0, 1.0, 1.0]),
        (Scaling(threshold=0.1, beta=2), [0.0, 1.0, 2 * S[0, 2].item()]),
        (Scaling(threshold=0.09, beta=2), [2 * S[0, 0].item(), 1.0, 2 * S[0, 2].item()]),
        (Fusion(threshold=0.1, beta=2), [0.0, 1.0, 2 * S[0, 2].item()]),
    ],
)
def test_what_is_not_above_the_threshold_is_zero(
    part: Binarization | Scaling | Fusion, expected: list[float]
) -> None:
    weights, left_out = part.build()(V, ZERO)
    torch.testing.assert_close(weights, torch.tensor([expected]))
    assert left_out.item() == pytest.approx(expected.count(0) / 3)


@pytest.mark.parametrize(
    ("part", "factor"), [(Binarization(threshold=0.1), 1), (Scaling(threshold=0.1, beta=3), 3)]
)
def test_gradients_pass_the_threshold(part: Binarization | Scaling, factor: float) -> None:
    v = V.clone().requires_grad_()
    weights, left_out = part.build()(v, ZERO)
    slope = S * (1 - S)
    (gradient,) = torch.autograd.grad(weights.sum(), v, retain_graph=True)
    torch.testing.assert_close(gradient, factor * slope)
    torch.testing.assert_close(torch.autograd.grad(left_out, v)[0], -slope / 3)


def test_alpha_makes_fusion_and_binarization_steeper_and_leaves_scaling() -> None:
    steps = torch.tensor(100)
    fusion = Fusion(alpha_step=0.02, beta=1).build()
    torch.testing.assert_close(fusion(V, steps)[0][:, 1:], torch.sigmoid(3 * V)[:, 1:])
    binary = Binarization(alpha_step=0.02, threshold=0.01).build()
    assert binary(V, ZERO)[0].tolist() == [[1, 1, 1]]
    assert binary(V, steps)[0].tolist() == [[0, 1, 1]]  # sigmoid(-9)
    scaling = Scaling(beta=1).build()
    torch.testing.assert_close(scaling(V, steps)[0], S)


def test_alpha_grows_with_training_steps_only_and_is_saved() -> None:
    model, batch = build(weights={"kind": "fusion", "alpha_step": 0.5}), random_batch(SCHEMA, 8)
    model.train()(batch)
    model.eval().loss(batch)
    assert model.num_steps == 0
    before = model(batch)
    torch.testing.assert_close(model(batch), before)
    for _ in range(3):
        model.train().loss(batch).total.backward()
    assert model.num_steps == 3
    after = model.eval()(batch)
    assert not torch.allclose(after, before)
    other = build(randomised=False, weights={"kind": "fusion", "alpha_step": 0.5}).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other(batch), after)


def test_pruners_at_zero_leave_the_plain_network() -> None:
    model = build().eval()
    with torch.no_grad():
        for pruner in (model.field_pruner, *model.pruners):
            pruner.project.weight.zero_()  # 2 sigmoid(0) = 1
    network = MLP(4 + model.embedding.width, (8, 5), out_features=2)
    linears = [*(layer.layers[0] for layer in model.layers), model.out]
    for layer, own in zip(network.layers[::2], linears, strict=True):
        layer.load_state_dict(own.state_dict())
    batch = random_batch(SCHEMA, 9)
    x = torch.cat([model.scenarios(batch.scenario), model.embedding(batch).flatten(1)], 1)
    torch.testing.assert_close(model(batch), network(x))


def test_row_by_row() -> None:
    model = build(weights={"kind": "fusion", "threshold": 0.7}).eval()
    model.num_steps.fill_(5000)  # alpha 1.5
    batch = random_batch(SCHEMA, 12)
    left_out = []

    def prune(pruner: nn.Module, x: Tensor, scenario: Tensor) -> Tensor:
        weights = []
        for value in pruner.project.weight @ torch.cat([scenario, x]):
            weight = 2 * torch.sigmoid(1.5 * value)
            weights.append(weight if weight > 0.7 else torch.zeros(()))
        left_out.append(sum(weight == 0 for weight in weights))
        return x * torch.stack(weights)

    table = model.scenarios.weight
    for row, known in enumerate(batch.scenario.tolist()):
        scenario = table[known - 1] if known else table.mean(0)
        x = prune(model.field_pruner, model.embedding(batch)[row].flatten(), scenario)
        x = torch.cat([scenario, x])
        for layer, pruner in zip(model.layers, model.pruners, strict=True):
            x = prune(pruner, layer(x), scenario)
        torch.testing.assert_close(model(batch)[row], model.out(x))
    assert sum(left_out) > 0


def test_sparsity_costs_outside_the_bounds_only() -> None:
    term = Bounds(least=0.1, most=0.3, weight=2.0, weight_step=0.5).build()
    pruned = torch.tensor([0.0, 0.15, 0.3, 0.7], requires_grad=True)  # half way: 0.2
    cost = term(pruned, torch.tensor(4))  # weight 4
    torch.testing.assert_close(cost, torch.tensor(4 * (0.2 * 0.2**2 + 0.5 * 0.5**2) / 4))
    (gradient,) = torch.autograd.grad(cost, pruned)
    # lambda is a weight: it has no gradient of its own.
    expected = torch.tensor([-0.2 * 2 * 0.2, 0.0, 0.0, 0.5 * 2 * 0.5])
    torch.testing.assert_close(gradient, expected)


def test_the_loss_is_that_of_the_labels_and_the_sparsity_term() -> None:
    batch = random_batch(SCHEMA, 8)
    for kind in ("bounds", "none"):
        model = build(regulariser={"kind": kind})
        labels = ranking_loss(model(batch), batch).total
        loss = model.loss(batch)
        torch.testing.assert_close(loss.parts["labels"], labels)
        torch.testing.assert_close(loss.total, labels + loss.parts["sparsity"])
        assert (loss.parts["sparsity"] > 0) == (kind == "bounds")


@pytest.mark.parametrize("kind", ["binarization", "fusion"])
def test_the_term_draws_the_share_between_its_bounds(kind: str) -> None:
    model = build(weights={"kind": kind, "threshold": 0.4}, regulariser={"weight": 100.0})
    batch = random_batch(SCHEMA, 64)
    pruners = [model.field_pruner, *model.pruners]
    optimizer = torch.optim.Adam([pruner.project.weight for pruner in pruners], lr=0.003)
    least, most = 0.15, 0.25
    start = model._run(batch)[1]
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch).parts["sparsity"].backward()
        optimizer.step()
    end = model._run(batch)[1]
    assert not ((start >= least) & (start <= most)).all()
    assert ((end >= least) & (end <= most)).all()


def test_wrong_settings() -> None:
    with pytest.raises(
        ValueError, match=r"least must not be above most; got least=0\.5, most=0\.2"
    ):
        Bounds(least=0.5, most=0.2)
    with pytest.raises(ValueError, match=r"unknown key weights\.alpha; known keys: beta, kind"):
        parse_config(AdaSparseConfig, {"weights": {"kind": "scaling", "alpha": 2.0}}, "test")
