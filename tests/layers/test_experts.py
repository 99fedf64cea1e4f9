import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.experts import (
    GateBudget,
    ReLURouter,
    Routing,
    TokenExperts,
    TopKRouter,
    balance,
    gate_size,
    open_share,
)
from rankloom.layers.token_mlp import TokenMLP, TokenSwiGLU

TOKENS, EXPERTS, DIM, HIDDEN = 3, 4, 5, 6


def randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double()


def one_expert(experts: TokenExperts, token: int, expert: int, x: Tensor) -> Tensor:
    """One expert on one token [dim], as the equations write it."""
    hidden = experts.expand[token, expert] @ x + experts.expand_bias[token, expert]
    if len(hidden) == 2 * HIDDEN:
        hidden = functional.silu(hidden[:HIDDEN]) * hidden[HIDDEN:]
    else:
        hidden = functional.gelu(hidden)
    return hidden @ experts.reduce[token, expert] + experts.reduce_bias[token, expert]


def by_loops(experts: TokenExperts, x: Tensor, gates: Tensor, shared: bool) -> Tensor:
    rows = []
    for row, row_gates in zip(x, gates, strict=True):
        tokens = []
        for token, (vector, weights) in enumerate(zip(row, row_gates, strict=True)):
            own = 0 if shared else token
            outs = [w * one_expert(experts, own, e, vector) for e, w in enumerate(weights)]
            tokens.append(torch.stack(outs).sum(0))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])
@pytest.mark.parametrize("kind", ["relu", "top_k"])
def test_both_ways_to_run_equal_one_expert_at_a_time(
    activation: str, shared: bool, kind: str
) -> None:
    num_tokens = None if shared else TOKENS
    experts = TokenExperts(num_tokens, EXPERTS, DIM, HIDDEN, activation=activation)
    router = (
        ReLURouter(num_tokens, DIM, EXPERTS)
        if kind == "relu"
        else TopKRouter(num_tokens, DIM, EXPERTS, 2)
    )
    model = randomise(nn.ModuleList([experts, router]))
    x = torch.randn(7, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, TOKENS, DIM, dtype=torch.float64)
    results = []
    for run in (
        experts.run_all,
        experts.run_chosen,
        lambda x, gates: by_loops(experts, x, gates, shared),
    ):
        gates = router(x).gates.double()
        assert (gates == 0).any()
        out = run(x, gates)
        gradients = torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])
        results.append([out, *gradients])
    *ways, expected = results
    for actual in ways:
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)


def test_only_chosen_rows_are_run_and_no_more_than_the_busiest_expert_has() -> None:
    experts = TokenExperts(1, 2, DIM, HIDDEN)
    seen = []
    experts.activation.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    gates = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    x = torch.randn(4, 1, DIM)
    out = experts(x, gates)
    assert seen == [(2, 2, HIDDEN)]  # two experts, of whose rows the second has two
    assert not out[3].any()
    torch.testing.assert_close(out, experts.run_all(x, gates))
    seen.clear()
    TokenExperts.run_all(experts, x, gates)
    assert seen == [(1, 4, 2, HIDDEN)]


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_chosen_gives_zeros(rows: int) -> None:
    experts = TokenExperts(TOKENS, EXPERTS, DIM, HIDDEN)
    x, gates = torch.randn(rows, TOKENS, DIM), torch.zeros(rows, TOKENS, EXPERTS)
    for out in (experts.run_chosen(x, gates), experts.run_all(x, gates)):
        assert out.shape == (rows, TOKENS, DIM)
        assert not out.any()


def test_switches_decide_which_way_runs() -> None:
    x, gates = torch.randn(2, TOKENS, DIM), torch.rand(2, TOKENS, EXPERTS)
    for sparse, name in ((True, "run_chosen"), (False, "run_all")):
        experts = TokenExperts(TOKENS, EXPERTS, DIM, HIDDEN, sparse=sparse)
        setattr(experts, name, lambda x, gates: 7 * x)
        assert torch.equal(experts(x, gates), 7 * x)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_one_open_expert_is_the_plain_network(activation: str) -> None:
    experts = randomise(TokenExperts(TOKENS, 1, DIM, HIDDEN, activation=activation))
    x = torch.randn(4, TOKENS, DIM, dtype=torch.float64)
    up, down = experts.expand[:, 0].mT, experts.reduce[:, 0]
    if activation == "gelu":
        plain = TokenMLP(TOKENS, DIM, HIDDEN).double()
        layers = [(plain.expand, up, experts.expand_bias)]
    else:
        plain = TokenSwiGLU(TOKENS, DIM, HIDDEN).double()
        halves = zip(up.chunk(2, -1), experts.expand_bias.chunk(2, -1), strict=True)
        layers = [(m, w, b) for m, (w, b) in zip((plain.gate, plain.up), halves, strict=True)]
    last = plain.reduce if activation == "gelu" else plain.down
    with torch.no_grad():
        for layer, weight, bias in [*layers, (last, down, experts.reduce_bias)]:
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    gates = torch.ones(4, TOKENS, 1, dtype=torch.float64)
    torch.testing.assert_close(experts(x, gates), plain(x))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_every_matrix_starts_as_if_alone(activation: str) -> None:
    experts = TokenExperts(2, 3, 40, 60, activation=activation, down_scale=0.01)
    expected = (2 / 100) ** 0.5
    assert experts.expand.std().item() == pytest.approx(expected, rel=0.05)
    assert experts.reduce.std().item() == pytest.approx(0.01 * expected, rel=0.05)


def test_autocast_gives_both_ways_the_same() -> None:
    experts = TokenExperts(TOKENS, EXPERTS, DIM, HIDDEN, activation="swiglu")
    router = TopKRouter(TOKENS, DIM, EXPERTS, 2)
    x = torch.randn(6, TOKENS, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        gates = router(x).gates
        assert gates.dtype == torch.float32
        ways = [experts.run_all(x, gates), experts.run_chosen(x, gates)]
    assert all(way.dtype == torch.bfloat16 for way in ways)
    torch.testing.assert_close(*ways, rtol=0.05, atol=0.05)


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
