import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rankloom.scenario.mi_dpg_parts import LENGTH_EPS, ClassifierBound, InfoNCEBound

SIZES = [4, 9]


def unit(x: Tensor) -> Tensor:
    return x / math.sqrt(float(x @ x) + LENGTH_EPS)


def test_info_nce_against_loops() -> None:
    """The first condition of scenarios 1, 3 and 4; scenario 2 has none, and 0 does not count."""
    bound = InfoNCEBound(4, 5, SIZES, 0.1)
    vectors, generated = torch.randn(7, 5), torch.randn(7, 13)
    scenario = torch.tensor([3, 0, 3, 1, 4, 0, 1])
    rows = [3, 0, 4]
    wanted = bound.of_condition(vectors).detach()

    def score(i: int, j: int) -> float:
        pairs = zip(wanted[i].split(SIZES), generated[j].split(SIZES), strict=True)
        return sum(float(unit(f) @ unit(s)) for f, s in pairs) / 2 / 0.1

    each = []
    for i in rows:
        scores = [math.exp(score(i, j)) for j in rows]
        each.append(-math.log(math.exp(score(i, i)) / sum(scores)))
    found = bound(vectors, generated, scenario)
    assert found.item() == pytest.approx(sum(each) / 3, rel=1e-4)
    moved = generated.clone()
    moved[[1, 2, 5, 6]] = 7.0  # others than the first of their scenario
    torch.testing.assert_close(bound(vectors, moved, scenario), found)


@pytest.mark.parametrize("scenario", [[2], [0, 0], [1, 1, 0]], ids=str)
def test_info_nce_of_fewer_than_two_scenarios_is_zero(scenario: list[int]) -> None:
    bound = InfoNCEBound(3, 5, SIZES, 0.1)
    count = len(scenario)
    generated = torch.randn(count, 13, requires_grad=True)
    found = bound(torch.randn(count, 5), generated, torch.tensor(scenario))
    assert found.item() == 0
    found.backward()
    assert generated.grad is not None
    assert not generated.grad.any()


def test_info_nce_pushes_equal_weights_apart() -> None:
    """Nothing is generated at first, and a step along the gradient makes two scenarios differ."""
    bound = InfoNCEBound(2, 5, SIZES, 0.1)
    generated = torch.zeros(2, 13, requires_grad=True)
    bound(torch.eye(2, 5), generated, torch.tensor([1, 2])).backward()
    assert generated.grad is not None
    assert generated.grad.isfinite().all()
    first, second = -generated.grad
    assert float(functional.cosine_similarity(first, second, 0)) < 0


def test_the_classifier_counts_known_scenarios_only() -> None:
    bound = ClassifierBound(3, 13, (6,))
    generated, scenario = torch.randn(5, 13), torch.tensor([2, 0, 3, 3, 0])
    logits = bound.classifier(generated[[0, 2, 3]])
    expected = functional.cross_entropy(logits, torch.tensor([1, 2, 2]))
    torch.testing.assert_close(bound(torch.randn(5, 4), generated, scenario), expected)
    nobody = bound(torch.randn(2, 4), generated[:2], torch.zeros(2, dtype=torch.int64))
    assert nobody.item() == 0
