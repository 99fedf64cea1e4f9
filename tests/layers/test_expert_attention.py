import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.attention import SelfAttention
from rankloom.layers.expert_attention import ExpertAttention
from rankloom.layers.experts import ExpertLinear
from rankloom.layers.routing import balance

ROWS, TOKENS, DIM, HEADS, EXPERTS = 3, 5, 8, 2, 4


def double(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def slow_gates(module: ExpertAttention, x: Tensor) -> dict[int, Tensor]:
    """A token's chosen experts and their weights, which sum to one."""
    logits = [torch.dot(w, x) for w in module.router.project.weight]
    weights = [logit.exp() for logit in logits]
    chosen = sorted(range(len(weights)), key=lambda e: -weights[e].item())
    chosen = chosen[: module.router.num_active]
    total = sum(weights[e] for e in chosen)
    return {e: weights[e] / total for e in chosen}


def slow_projection(part: nn.Module, x: Tensor, gates: dict[int, Tensor] | None) -> Tensor:
    if gates is None:
        return part.only.weight @ x
    return torch.stack([g * (x @ part.weight[e]) for e, g in gates.items()]).sum(0)


def slow_attention(
    module: ExpertAttention, x: Tensor, others: Tensor, mask: Tensor | None
) -> Tensor:
    """The equations, one row, token, head and expert at a time."""
    size = x.shape[-1] // module.num_heads
    rows = []
    for row in range(len(x)):
        keys, values = [], []
        for token in others[row]:
            gates = None if module.router is None else slow_gates(module, token)
            keys.append(module.key.weight @ token)
            values.append(slow_projection(module.value, token, gates))
        outs = []
        for i, token in enumerate(x[row]):
            q = module.query.weight @ token
            heads = []
            for head in range(module.num_heads):
                piece = slice(head * size, (head + 1) * size)
                seen = [j for j in range(len(keys)) if mask is None or mask[row, 0, i, j]]
                found = torch.zeros(size, dtype=x.dtype)
                if seen:
                    scores = [torch.dot(q[piece], keys[j][piece]) / math.sqrt(size) for j in seen]
                    weights = torch.softmax(torch.stack(scores), 0)
                    for w, j in zip(weights, seen, strict=True):
                        found = found + w * values[j][piece]
                heads.append(found)
            gates = None if module.router is None else slow_gates(module, token)
            outs.append(slow_projection(module.out, torch.cat(heads), gates))
        rows.append(torch.stack(outs))
    return torch.stack(rows)


def assert_same(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-8)
    weights = torch.randn_like(slow)
    ways = [torch.autograd.grad((out * weights).sum(), inputs) for out in (fast, slow)]
    for one, other in zip(*ways, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("num_experts", "num_active"), [(1, 1), (4, 2), (3, 3)], ids=["plain", "2 of 4", "all"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_equals_the_equations(
    num_experts: int, num_active: int, masked: bool
) -> None:
    module = double(ExpertAttention(DIM, HEADS, num_experts, num_active))
    x = torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    mask = None
    if masked:
        mask = torch.rand(ROWS, 1, TOKENS, TOKENS) < 0.6
        mask[0] = False  # a row of padding
        mask[1, 0, 2] = False  # a token that sees nothing
    fast, slow = module(x, mask), slow_attention(module, x, x, mask)
    if masked:
        assert not fast[0].any()
        assert not fast[1, 2].any()
    assert_same(fast, slow, [x, *module.parameters()])


def test_tokens_attend_to_others_with_a_routing_of_their_own() -> None:
    module = double(ExpertAttention(DIM, HEADS, EXPERTS, 2))
    x = torch.randn(ROWS, 2, DIM, dtype=torch.float64, requires_grad=True)
    others = torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(ROWS, 1, 1, TOKENS, dtype=torch.bool)
    mask[1, ..., :3] = False
    k, v = module.keys_values(others, module.route(others))
    assert k.shape == v.shape == (ROWS, HEADS, TOKENS, DIM // HEADS)
    fast = module.attend(x, module.route(x), k, v, mask)
    slow = slow_attention(module, x, others, mask.expand(-1, -1, 2, -1))
    assert_same(fast, slow, [x, others, *module.parameters()])


def test_prefix_in_two_steps_equals_one_pass_under_the_mask() -> None:
    module = double(ExpertAttention(DIM, HEADS, EXPERTS, 2))
    events, fields = (torch.randn(ROWS, n, DIM, dtype=torch.float64) for n in (4, 3))
    x = torch.cat([events, fields], dim=1)
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:4, 4:] = False
    whole = module(x, mask[None, None])
    routing = module.route(events)
    past = module.keys_values(events, routing)
    torch.testing.assert_close(module.attend(events, routing, *past), whole[:, :4])
    routing = module.route(fields)
    own = module.keys_values(fields, routing)
    k, v = (torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
    torch.testing.assert_close(module.attend(fields, routing, k, v), whole[:, 4:])


def test_one_expert_is_plain_self_attention() -> None:
    module = double(ExpertAttention(DIM, HEADS))
    assert module.route(torch.randn(1, 1, DIM)) is None
    plain = SelfAttention(DIM, DIM, HEADS).double()
    with torch.no_grad():
        weights = [module.query.weight, module.key.weight, module.value.only.weight]
        plain.project.weight.copy_(torch.cat(weights))
    x = torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64)
    mask = torch.rand(ROWS, 1, TOKENS, TOKENS) < 0.7
    torch.testing.assert_close(module(x, mask), module.out(plain(x, mask), None))


def test_equal_experts_are_one_expert() -> None:
    experts, one = double(ExpertAttention(DIM, HEADS, EXPERTS, 2)), ExpertAttention(DIM, HEADS)
    one = one.double()
    with torch.no_grad():
        one.query.weight.copy_(experts.query.weight)
        one.key.weight.copy_(experts.key.weight)
        for many, only in ((experts.value, one.value), (experts.out, one.out)):
            many.weight.copy_(many.weight[:1].expand_as(many.weight))
            only.only.weight.copy_(many.weight[0].mT)
    x = torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64)
    torch.testing.assert_close(experts(x), one(x))


def test_every_extra_expert_adds_two_matrices_and_its_row_of_the_router() -> None:
    sizes = [sum(p.numel() for p in ExpertAttention(DIM, HEADS, n).parameters()) for n in (1, 2, 3)]
    assert sizes[0] == 4 * DIM**2
    assert sizes[1] == 6 * DIM**2 + 2 * DIM
    assert sizes[2] == 8 * DIM**2 + 3 * DIM


def test_every_expert_starts_as_if_alone() -> None:
    layer = ExpertLinear(3, 80, 120)
    for matrix in layer.weight:
        assert matrix.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)


def test_its_routing_balances_all_tokens_together() -> None:
    module = ExpertAttention(DIM, HEADS, 2, 1)
    with torch.no_grad():
        module.router.project.weight.zero_()[0, 0] = 10
    x = torch.zeros(4, 2, DIM)
    x[:, 0, 0], x[:, 1, 0] = 1, -1  # the first token chooses expert 0, the second expert 1
    routing = module.route(x)
    assert routing.gates.tolist() == [[[1, 0], [0, 1]]] * 4
    assert balance(routing).item() == pytest.approx(1)  # by token it would be 2


def test_dropout_only_in_training() -> None:
    module = ExpertAttention(DIM, HEADS, 2, 1, dropout=0.5)
    x = torch.randn(ROWS, TOKENS, DIM)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_autocast_keeps_bfloat16(num_experts: int) -> None:
    module = ExpertAttention(DIM, HEADS, num_experts)
    x = torch.randn(ROWS, TOKENS, DIM)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
    out.float().sum().backward()
    assert all(p.grad is not None for name, p in module.named_parameters() if "router" not in name)


@pytest.mark.parametrize("shape", [(0, TOKENS), (2, 0), (1, 1)])
def test_empty_and_single(shape: tuple[int, int]) -> None:
    out = ExpertAttention(DIM, HEADS, EXPERTS, 2)(torch.randn(*shape, DIM))
    assert out.shape == (*shape, DIM)
    assert out.isfinite().all()


def test_compiled_and_exported_it_is_the_same() -> None:
    module = ExpertAttention(DIM, HEADS, EXPERTS, 2).eval()
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    x = torch.randn(4, TOKENS, DIM)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), module(x, mask))
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x, mask), dynamic_shapes=({0: batch}, None)).module()
    for rows in (1, 2, 7):
        x = torch.randn(rows, TOKENS, DIM)
        torch.testing.assert_close(program(x, mask), module(x, mask))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((8, 3, 1, 1), "num_heads must divide dim; got dim=8, num_heads=3"),
        ((8, 0, 1, 1), "num_heads must divide dim; got dim=8, num_heads=0"),
        ((8, 2, 2, 3), "got num_active=3, num_experts=2"),
        ((8, 2, 1, 2), "got num_active=2, num_experts=1"),
        ((8, 2, 4, 0), "got num_active=0, num_experts=4"),
    ],
)
def test_settings_that_cannot_be(settings: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertAttention(*settings)


def test_running_the_chosen_only_gives_the_same() -> None:
    dense = double(ExpertAttention(DIM, HEADS, EXPERTS, 2, sparse=False))
    sparse = ExpertAttention(DIM, HEADS, EXPERTS, 2, sparse=True).double()
    sparse.load_state_dict(dense.state_dict())
    for layer in (sparse.value, sparse.out):
        layer.run_all = None
    x = torch.randn(ROWS, TOKENS, DIM, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
