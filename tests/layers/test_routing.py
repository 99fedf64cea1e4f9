from itertools import product

import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.routing import (
    GateBudget,
    ReLURouter,
    Routing,
    TopKRouter,
    balance,
    gate_size,
    open_share,
)


def routers_with(router: nn.Module, weight: list[list[float]]) -> nn.Module:
    with torch.no_grad():
        router.project.weight.copy_(torch.tensor([weight]))
    return router


def test_routers_worked_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0]]])
    weight = [[1.0, -1.0, 0.0], [1.0, 0.0, 2.0]]  # x W = (3, -1, 4)
    relu = routers_with(ReLURouter(1, 2, 3), weight)(x)
    assert relu.gates.tolist() == [[[3.0, 0.0, 4.0]]]
    assert relu.scores is relu.gates
    softmax = torch.softmax(torch.tensor([3.0, -1.0, 4.0]), 0)
    top = routers_with(TopKRouter(1, 2, 3, 2), weight)(x)
    torch.testing.assert_close(top.scores[0, 0], softmax)
    torch.testing.assert_close(top.gates[0, 0], softmax * torch.tensor([1.0, 0.0, 1.0]))
    normalised = routers_with(TopKRouter(1, 2, 3, 2, normalised=True), weight)(x)
    expected = torch.tensor([1.0, 0.0, torch.e]) / (1 + torch.e)
    torch.testing.assert_close(normalised.gates[0, 0], expected)


@pytest.mark.parametrize("num_active", [0, 4])
def test_no_more_experts_can_run_than_there_are(num_active: int) -> None:
    with pytest.raises(ValueError, match=f"got num_active={num_active}, num_experts=3"):
        TopKRouter(2, 4, 3, num_active)


def test_gate_size_and_share_worked_by_hand() -> None:
    gates = torch.tensor([[[1.0, 0.0], [2.0, 3.0]], [[0.0, 0.0], [0.5, 0.0]]])
    routing = Routing(gates, gates)
    assert gate_size(routing).item() == pytest.approx((6.0 + 0.5) / 2)
    assert open_share([routing]).item() == pytest.approx(4 / 8)
    none = Routing(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2))
    assert open_share([routing, none]).item() == pytest.approx(1 / 4)


def test_balance_worked_by_hand() -> None:
    # Token 0: rows choose experts 0, 0, 0, 1; token 1 uses both alike.
    scores = torch.tensor(
        [
            [[0.9, 0.1], [0.6, 0.4]],
            [[0.8, 0.2], [0.4, 0.6]],
            [[0.7, 0.3], [0.6, 0.4]],
            [[0.4, 0.6], [0.4, 0.6]],
        ]
    )
    gates = torch.where(scores > 0.5, scores, 0.0)
    first = 2 * (0.75 * 0.7 + 0.25 * 0.3)
    assert balance(Routing(gates, scores)).item() == pytest.approx((first + 1.0) / 2)


def slow_balance(routing: Routing, real: list[tuple[int, int]]) -> Tensor:
    """Over the given (row, token) pairs, which one router speaks for."""
    gates, scores = routing.gates, routing.scores
    num_experts = gates.shape[2]
    choices = [0] * num_experts
    means = [torch.zeros((), dtype=scores.dtype)] * num_experts
    for row, token in real:
        for expert in range(num_experts):
            choices[expert] += int(gates[row, token, expert] != 0)
            means[expert] = means[expert] + scores[row, token, expert] / len(real)
    pairs = zip(choices, means, strict=True)
    return num_experts * torch.stack([c / sum(choices) * mean for c, mean in pairs]).sum()


@pytest.mark.parametrize("shared", [False, True])
def test_balance_counts_real_tokens_only(shared: bool) -> None:
    torch.manual_seed(0)
    tokens = None if shared else 4
    router = TopKRouter(tokens, 5, 3, 2)
    x = torch.randn(6, 4, 5, requires_grad=True)
    mask = torch.rand(6, 4) < 0.5
    mask[:, 2] = False  # padding in every row
    routing = router(x)
    assert routing.shared is shared
    real = [(row, token) for row, token in product(range(6), range(4)) if mask[row, token]]
    groups = [real] if shared else [[pair for pair in real if pair[1] == t] for t in (0, 1, 3)]
    expected = torch.stack([slow_balance(routing, group) for group in groups]).mean()
    actual = balance(routing, mask)
    torch.testing.assert_close(actual, expected)
    inputs = [x, *router.parameters()]
    ways = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (actual, expected)]
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert ways[0][0][mask].any()
    assert not ways[0][0][~mask].any()  # not even a gradient reaches padding


def test_a_shared_router_is_judged_over_all_tokens() -> None:
    # Each token always takes the same expert, and both experts are used alike.
    gates = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 3)
    assert balance(Routing(gates, gates)).item() == pytest.approx(2)
    assert balance(Routing(gates, gates, shared=True)).item() == pytest.approx(1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [0, 3])
def test_balance_of_nothing_but_padding_is_finite(shared: bool, rows: int) -> None:
    gates = torch.rand(rows, 2, 4, requires_grad=True)
    loss = balance(Routing(gates, gates, shared), torch.zeros(rows, 2, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert not gates.grad.any()


def test_all_real_is_no_mask() -> None:
    routing = TopKRouter(3, 5, 4, 2)(torch.randn(6, 3, 5))
    assert torch.equal(balance(routing), balance(routing, torch.ones(6, 3, dtype=torch.bool)))


def test_a_router_without_biases_is_the_one_whose_biases_are_zero() -> None:
    bare = TopKRouter(None, 5, 4, 2, bias=False)
    assert [name for name, _ in bare.named_parameters()] == ["project.weight"]
    full = TopKRouter(None, 5, 4, 2)
    full.load_state_dict(bare.state_dict(), strict=False)  # biases start at zero
    x = torch.randn(3, 2, 5)
    assert torch.equal(bare(x).gates, full(x).gates)


def test_budget_moves_its_weight_towards_the_wanted_share() -> None:
    budget = GateBudget(0.5, rate=2.0, start=0.1)
    full = torch.ones(2, 1, 4, requires_grad=True)
    many, few = Routing(full, full), Routing(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
    penalty = budget([many, many])
    assert penalty.item() == pytest.approx(0.1 * 8)
    assert budget.weight.item() == pytest.approx(0.2)
    penalty.backward()
    torch.testing.assert_close(full.grad, torch.full((2, 1, 4), 0.1))  # 2 layers * 0.1 / 2 rows
    assert budget([few]).item() == 0
    assert budget.weight.item() == pytest.approx(0.1)
    budget([many, few])  # as many as wanted
    assert budget.weight.item() == pytest.approx(0.1)
    for _ in range(9):
        budget([many])
    assert budget.weight.item() == 1
    budget.eval()([few])
    assert budget.weight.item() == 1


def test_the_budget_s_weight_comes_back() -> None:
    budget = GateBudget(0.5).train()
    for gates, steps in ((torch.zeros(2, 1, 4), 1_000), (torch.ones(2, 1, 4), 60)):
        for _ in range(steps):
            budget([Routing(gates, gates)])
    assert budget.weight > 1e-4


def test_balance_of_closed_gates_is_finite() -> None:
    closed = torch.zeros(2, 1, 4)
    assert balance(Routing(closed, closed)) == 0
