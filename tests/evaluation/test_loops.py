import math

import pytest
import torch
from torch import Tensor

from rankloom.evaluation.loops import CoefficientSums, RouterSums, StateSums
from rankloom.layers.routing import Routing


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_cosine(x: Tensor, y: Tensor) -> float:
    values = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
    return sum(values) / len(values)


def slow_cka(x: Tensor, y: Tensor) -> float:
    """By Gram matrices of tokens, as the source has it."""
    centre = torch.eye(len(x)) - 1 / len(x)
    first, second = (centre @ z @ z.mT @ centre for z in (x, y))
    hsic = (first * second).sum()
    return float(hsic / (first.norm() * second.norm()))


def test_similarities_are_those_of_loops_over_tokens() -> None:
    states = [normal(12, 3, 4, seed=seed) + 1 for seed in range(3)]
    real = normal(12, 3, seed=9) > -0.5
    sums = StateSums()
    for rows in (slice(0, 5), slice(5, 12)):
        sums.add([state[rows] for state in states], real[rows])
    cosine, cka = sums.similarities()
    assert sums.num_tokens == int(real.sum())
    for i, x in enumerate(states):
        for j, y in enumerate(states):
            assert float(cosine[i, j]) == pytest.approx(slow_cosine(x[real], y[real]), abs=1e-5)
            assert float(cka[i, j]) == pytest.approx(slow_cka(x[real], y[real]), abs=1e-5)


def test_cka_knows_no_rotation_and_no_factor() -> None:
    x = normal(40, 2, 4)
    rotation = torch.linalg.qr(normal(4, 4, seed=1))[0]
    sums = StateSums()
    sums.add([x, -3 * x @ rotation + 5, x @ torch.diag(torch.tensor([1.0, 0, 0, 0]))], None)
    cosine, cka = sums.similarities()
    assert float(cka[0, 1]) == pytest.approx(1, abs=1e-6)
    assert float(cka[0, 2]) < 0.9
    assert abs(float(cosine[0, 1])) < 0.9


def test_a_state_without_variance_has_no_cka() -> None:
    sums = StateSums()
    sums.add([normal(20, 2, 4), torch.full((20, 2, 4), 0.1)], None)
    _, cka = sums.similarities()
    assert float(cka[0, 0]) == pytest.approx(1)
    assert math.isnan(float(cka[0, 1]))
    assert math.isnan(float(cka[1, 1]))
    with pytest.raises(ValueError, match="no states were added"):
        StateSums().similarities()


def test_routing_worked_by_hand() -> None:
    """Two rows of two tokens, three experts; the last token is padding."""
    gates = torch.tensor([[[0.5, 0.5, 0], [1, 0, 0]], [[0, 0.25, 0.75], [9, 9, 9]]])
    scores = torch.tensor([[[0.5, 0.5, 0], [1, 0, 0]], [[0, 1, 3], [9, 9, 9]]])
    before = torch.tensor([[[1.0, 0, 0], [1, 0, 0]], [[1, 0, 0], [9, 9, 9]]])
    real = torch.tensor([[True, True], [True, False]])
    sums = RouterSums()
    sums.add(Routing(gates, scores), Routing(before, before), real)
    found = sums.result(2)
    assert (found.call, found.tokens) == (2, 3)
    assert found.share == pytest.approx((2 / 3, 2 / 3, 1 / 3))
    assert found.gate == pytest.approx((0.5, 0.25, 0.25))
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert found.entropy == pytest.approx((math.log(2) + 0 + quarter) / 3)
    assert found.agreement == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_tokens_that_choose_nothing() -> None:
    """ReLU gates may all be zero: no entropy, and equal to a choice of nothing."""
    nothing = Routing(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    sums = RouterSums()
    sums.add(nothing, nothing, None)
    found = sums.result(1)
    assert found.share == found.gate == (0, 0, 0)
    assert (found.entropy, found.agreement) == (0, 1)
    first = RouterSums()
    first.add(nothing, None, None)
    assert math.isnan(first.result(0).agreement)
    with pytest.raises(ValueError, match="no routing was added"):
        RouterSums().result(0)


def test_coefficients_are_means_over_real_tokens() -> None:
    mix, post = normal(6, 2, 3, 2), normal(6, 2, 2, seed=1)
    real = torch.tensor([[True, False]]).expand(6, 2)
    sums = CoefficientSums()
    for rows in (slice(0, 1), slice(1, 6)):
        sums.add(mix[rows], post[rows], real[rows])
    found = sums.result(0)
    assert found.pre == pytest.approx(mix[:, 0, 0].mean(0).tolist())
    assert found.res[1] == pytest.approx(mix[:, 0, 2].mean(0).tolist())
    assert found.post == pytest.approx(post[:, 0].mean(0).tolist())
    with pytest.raises(ValueError, match="no coefficients were added"):
        CoefficientSums().result(0)
