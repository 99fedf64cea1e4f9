import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.experts import ExpertLinear, Sparse, TokenExperts, choosing_pays
from rankloom.layers.routing import ReLURouter, TopKRouter
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
    experts = TokenExperts(1, 2, DIM, HIDDEN, sparse=True)
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


def test_shared_experts_are_run_for_their_rows_exactly() -> None:
    experts = TokenExperts(None, 3, DIM, HIDDEN)
    seen = []
    experts.activation.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    gates = torch.tensor([[[1.0, 0, 0], [2.0, 0, 1.0]], [[0.5, 0, 0], [0, 0, 0]]])
    x = torch.randn(2, 2, DIM)
    out = experts.run_chosen(x, gates)
    assert seen == [(3, HIDDEN), (0, HIDDEN), (1, HIDDEN)]
    assert not out[1, 1].any()
    torch.testing.assert_close(out, experts.run_all(x, gates))


@pytest.mark.parametrize("num_tokens", [None, TOKENS])
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_chosen_gives_zeros(rows: int, num_tokens: int | None) -> None:
    experts = TokenExperts(num_tokens, EXPERTS, DIM, HIDDEN)
    x, gates = torch.randn(rows, TOKENS, DIM), torch.zeros(rows, TOKENS, EXPERTS)
    for out in (experts.run_chosen(x, gates), experts.run_all(x, gates)):
        assert out.shape == (rows, TOKENS, DIM)
        assert not out.any()


Layer = TokenExperts | ExpertLinear


def build(kind: str, sparse: Sparse, dim: int = DIM) -> Layer:
    if kind == "linear":
        return ExpertLinear(EXPERTS, dim, dim, sparse=sparse)
    return TokenExperts(TOKENS if kind == "own" else None, EXPERTS, dim, 2 * dim, sparse=sparse)


@pytest.mark.parametrize("kind", ["own", "shared", "linear"])
def test_switches_decide_which_way_runs(kind: str) -> None:
    x, gates = torch.randn(2, TOKENS, DIM), torch.rand(2, TOKENS, EXPERTS)
    for sparse, name in ((True, "run_chosen"), (False, "run_all"), ("auto", "run_all")):
        experts = build(kind, sparse)
        setattr(experts, name, lambda x, gates: 7 * x)
        assert torch.equal(experts(x, gates), 7 * x)


@pytest.mark.parametrize("kind", ["own", "shared", "linear"])
def test_auto_runs_large_batches_by_choice_and_both_ways_agree(kind: str) -> None:
    dim = 64
    experts = build(kind, "auto", dim)
    one_of_four = torch.eye(EXPERTS)[torch.arange(600 * TOKENS) % EXPERTS].view(600, TOKENS, -1)
    ran = []
    for name in ("run_all", "run_chosen"):
        way = getattr(experts, name)
        setattr(experts, name, lambda *args, way=way, name=name: (ran.append(name), way(*args))[1])
    x = torch.randn(600, TOKENS, dim)
    for gates in (one_of_four[:2], one_of_four, torch.ones_like(one_of_four)):
        torch.testing.assert_close(
            experts(x[: len(gates)], gates), experts.run_all(x[: len(gates)], gates)
        )
    assert ran[::2] == ["run_all", "run_chosen", "run_all"]


def test_when_choosing_pays_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cost in (("CHOICE", 2), ("EXPERT", 100), ("BATCHED_EXPERT", 10)):
        monkeypatch.setattr(f"rankloom.layers.experts.{name}_COST", cost)

    def pays(chosen: list[list[int]], multiply_adds: int, shared: bool = True) -> bool:
        gates = torch.tensor(chosen).float().unsqueeze(1 if shared else 0)
        return choosing_pays(gates, 5, multiply_adds, shared=shared)

    even = [[1, 0], [0, 1], [1, 0], [0, 1]]
    # 4 choices of (work + 10) and 2 experts of 100, against 8 times the work
    assert not pays(even, 60)
    assert pays(even, 61)
    uneven = [[1, 0], [1, 0], [1, 0], [1, 0]]
    assert pays(uneven, 61)
    # Where every token has its own, each expert gets as many rows as the busiest has.
    tokens = [[1, 0], [1, 0]]  # of one row: 4 of 4
    assert not pays(tokens, 10_000, shared=False)
    gates = torch.tensor([[[1.0, 0]], [[0, 1.0]]])  # two rows of one token: 2 * 1 of 4
    # 2 of (work + 10) and 2 of 10, against 4 times the work
    assert not choosing_pays(gates, 5, 20, shared=False)
    assert choosing_pays(gates, 5, 21, shared=False)
    assert not choosing_pays(gates.to("meta"), 5, 21, shared=False)


def test_compiled_experts_run_for_all_rows() -> None:
    x, gates = torch.randn(4, 2, DIM), torch.eye(EXPERTS)[:2].expand(4, -1, -1)
    for kind in ("shared", "linear"):
        experts = build(kind, True)
        expected = experts(x, gates)
        experts.run_chosen = None
        compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, gates), expected)


def test_linear_experts_equal_one_at_a_time() -> None:
    layer = randomise(ExpertLinear(EXPERTS, DIM, 3))
    router = randomise(TopKRouter(None, DIM, EXPERTS, 2))
    x = torch.randn(7, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, TOKENS, 3, dtype=torch.float64)

    def by_token(x: Tensor, gates: Tensor) -> Tensor:
        rows = zip(x.flatten(0, 1), gates.flatten(0, 1), strict=True)
        outs = [
            sum(g * (token @ matrix) for g, matrix in zip(row_gates, layer.weight, strict=True))
            for token, row_gates in rows
        ]
        return torch.stack(outs).view(7, TOKENS, 3)

    results = []
    for run in (layer.run_all, layer.run_chosen, by_token):
        out = run(x, router(x).gates.double())
        inputs = [x, *layer.parameters(), *router.parameters()]
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    *ways, expected = results
    for actual in ways:
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (3, 2)])
def test_linear_experts_that_nobody_chose_give_zeros(shape: tuple[int, int]) -> None:
    layer = ExpertLinear(EXPERTS, DIM, 3)
    x, gates = torch.randn(*shape, DIM), torch.zeros(*shape, EXPERTS)
    for out in (layer.run_all(x, gates), layer.run_chosen(x, gates)):
        assert out.shape == (*shape, 3)
        assert not out.any()


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


@pytest.mark.parametrize("num_tokens", [None, TOKENS])
def test_autocast_gives_both_ways_the_same(num_tokens: int | None) -> None:
    experts = TokenExperts(num_tokens, EXPERTS, DIM, HIDDEN, activation="swiglu")
    router = TopKRouter(num_tokens, DIM, EXPERTS, 2)
    x = torch.randn(6, TOKENS, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        gates = router(x).gates
        assert gates.dtype == torch.float32
        ways = [experts.run_all(x, gates), experts.run_chosen(x, gates)]
    assert all(way.dtype == torch.bfloat16 for way in ways)
    torch.testing.assert_close(*ways, rtol=0.05, atol=0.05)
