import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.mixed_attention import (
    EqualTokens,
    EventPass,
    FieldPass,
    MixedAttention,
    MixedTokens,
    WholeRow,
    over_tokens,
)
from rankloom.layers.token_mlp import PerTokenLinear, TokenMLP

EVENTS, FIELDS, DIM, HEADS = 5, 3, 4, 2


def causal(tokens: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()


def with_padding(real: Tensor, tokens: int) -> Tensor:
    """Causal over real events [rows, events] and fields; a padded event sees itself."""
    fields = torch.ones(len(real), tokens - real.shape[1], dtype=torch.bool)
    seen = torch.cat([real, fields], 1)[:, None, None]
    return (causal(tokens) & seen) | torch.eye(tokens, dtype=torch.bool)


def layer(num_queries: int = EVENTS, **settings) -> MixedAttention:
    return MixedAttention(DIM, HEADS, EVENTS, FIELDS, num_queries=num_queries, **settings).double()


def matrices(part: nn.Module, token: int, num_shared: int) -> Tensor:
    """The matrix [in, out] by which a token goes."""
    if isinstance(part, EqualTokens):
        return part.shared.weight.T
    return part.shared.weight.T if token < num_shared else part.own.weight[token - num_shared]


def by_loops(module: MixedAttention, row: Tensor, mask: Tensor, events: int) -> Tensor:
    """One row [tokens, dim], a token and a head at a time."""
    head_dim = DIM // HEADS
    first = events - module.num_queries
    outputs = []
    for m in range(first, len(row)):
        q = row[m] @ matrices(module.query, m, events)
        heads = []
        for h in range(HEADS):
            piece = slice(h * head_dim, (h + 1) * head_dim)
            numerators, values = [], []
            for t in range(len(row)):
                if not mask[m, t]:
                    continue
                k, v = (row[t] @ matrices(module.key_value, t, events)).chunk(2)
                numerators.append(torch.exp(q[piece] @ k[piece] / math.sqrt(head_dim)))
                values.append(v[piece])
            total = sum(numerators)
            heads.append(sum(n / total * v for n, v in zip(numerators, values, strict=True)))
        outputs.append(module.out.weight @ torch.cat(heads))
    return torch.stack(outputs)


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "shared"])
@pytest.mark.parametrize("num_queries", [EVENTS, 2, 0])
def test_it_equals_loops_over_tokens_and_heads(num_queries: int, mixed: bool) -> None:
    module = layer(num_queries, mixed=mixed)
    x = torch.randn(3, EVENTS + FIELDS, DIM, dtype=torch.float64)
    real = torch.tensor([[False] * 5, [False, False, True, True, True], [True] * 5])
    mask = with_padding(real, EVENTS + FIELDS)
    out = module(x, WholeRow(FIELDS, mask))
    slow = torch.stack([by_loops(module, x[i], mask[i, 0], EVENTS) for i in range(3)])
    torch.testing.assert_close(out, slow)
    weights = torch.randn_like(out)
    parameters = list(module.parameters())
    gradients = [torch.autograd.grad((o * weights).sum(), parameters) for o in (out, slow)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_two_tokens_by_hand() -> None:
    """One event, one field: keys 1 and 2, values 3 and 10, the field's query is log 2."""
    module = MixedAttention(1, 1, 1, 1, num_queries=1)
    with torch.no_grad():
        module.query.shared.weight.fill_(7.0)
        module.query.own.weight.fill_(math.log(2))
        module.key_value.shared.weight.copy_(torch.tensor([[1.0], [3.0]]))
        module.key_value.own.weight.copy_(torch.tensor([[[2.0, 10.0]]]))
        module.out.weight.fill_(0.5)
    out = module(torch.ones(1, 2, 1), WholeRow(1, causal(2)))
    field = 3 / 3 + 10 * 2 / 3  # weights 2^1 and 2^2 over 6
    torch.testing.assert_close(out, torch.tensor([[[1.5], [0.5 * field]]]))


def test_a_later_token_moves_no_earlier_one() -> None:
    module = layer()
    x = torch.randn(1, EVENTS + FIELDS, DIM, dtype=torch.float64)
    row = WholeRow(FIELDS, causal(EVENTS + FIELDS))
    before = module(x, row)
    for token in range(EVENTS + FIELDS):
        changed = x.clone()
        changed[:, token] += 1
        moved = (module(changed, row) != before).any(-1)[0]
        assert not moved[:token].any()
        assert moved[token:].all()


def in_two_steps(
    layers: list[MixedAttention], x: Tensor, real: Tensor | None, fields: Tensor, request: Tensor
) -> Tensor:
    """The layers added up, events of requests first, then the candidates' fields."""
    total = x.shape[1]
    events = EventPass(causal(total) if real is None else with_padding(real, total))
    for module in layers:
        update = module(x, events)
        x = x[:, x.shape[1] - update.shape[1] :] + update
    cache = events.cache(real)
    assert [k.shape[1] for k in cache.keys] == [EVENTS, *(m.num_queries for m in layers[:-1])]
    rows = FieldPass(cache, request, FIELDS)
    for module in layers:
        fields = fields + module(fields, rows)
    return fields


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "shared"])
@pytest.mark.parametrize(
    "request_of",
    [[2, 0, 2, 2, 1, 0], [0], [1, 1], [], [0, 1, 2]],
    ids=["uneven, unordered", "one", "requests without candidates", "none", "one each"],
)
def test_two_steps_equal_one(request_of: list[int], mixed: bool, padded: bool) -> None:
    queries = [EVENTS, 2, 0]
    given = [EVENTS, EVENTS, 2]
    layers = [
        MixedAttention(DIM, HEADS, have, FIELDS, num_queries=asking, mixed=mixed).double()
        for have, asking in zip(given, queries, strict=True)
    ]
    events = torch.randn(3, EVENTS, DIM, dtype=torch.float64)
    real = torch.tensor([[False] * 5, [False, False, False, True, True], [True] * 5])
    mask = with_padding(real, EVENTS + FIELDS) if padded else causal(EVENTS + FIELDS)
    request = torch.tensor(request_of, dtype=torch.int32)
    fields = torch.randn(len(request), FIELDS, DIM, dtype=torch.float64)

    x = torch.cat([events[request.long()], fields], dim=1)
    row = WholeRow(FIELDS, mask[request.long()] if padded else mask)
    for module in layers:
        update = module(x, row)
        x = x[:, x.shape[1] - update.shape[1] :] + update
    found = in_two_steps(layers, events, real if padded else None, fields, request)
    torch.testing.assert_close(found, x)


def test_the_cache_holds_keys_and_values_of_a_request_only_once() -> None:
    events = EventPass(causal(EVENTS))
    layer()(torch.randn(2, EVENTS, DIM, dtype=torch.float64), events)
    assert events.cache(None).memory_bytes == 2 * 2 * EVENTS * DIM * 8


def test_own_weights_are_those_of_the_last_tokens() -> None:
    part = MixedTokens(nn.Linear(2, 3), PerTokenLinear(2, 2, 3))
    x = torch.randn(4, 5, 2)
    out = part(x, 2)
    torch.testing.assert_close(out[:, :3], part.shared(x[:, :3]))
    torch.testing.assert_close(out[:, 3:], part.own(x[:, 3:]))
    torch.testing.assert_close(part(x[:, 3:], 2), out[:, 3:])
    torch.testing.assert_close(part(x[:, :3], 0), out[:, :3])


def test_there_are_weights_only_for_tokens_there_are() -> None:
    def build(tokens: int | None) -> nn.Module:
        return TokenMLP(tokens, 2, 4)

    one = sum(p.numel() for p in build(None).parameters())
    for num_shared, mixed, copies in ((7, True, 4), (0, True, 3), (7, False, 1), (0, False, 1)):
        part = over_tokens(build, num_shared, 3, mixed=mixed)
        assert sum(p.numel() for p in part.parameters()) == copies * one


def test_projections_start_as_matrices_of_their_own() -> None:
    """A key's matrix, drawn alone, has variance 1 / dim; as a part of [K, V] it would have less."""
    module = MixedAttention(64, 1, 1, 20, num_queries=1)
    key_value = module.key_value
    for weight in (key_value.shared.weight, key_value.own.weight, module.query.own.weight):
        assert weight.var().item() == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; got dim=4, num_heads=3"),
        ({"num_heads": 0}, "num_heads must divide dim; got dim=4, num_heads=0"),
        ({"num_queries": 6}, "num_queries must be 0 to num_events=5; got num_queries=6"),
        ({"num_queries": -1}, "num_queries must be 0 to num_events=5; got num_queries=-1"),
    ],
)
def test_wrong_sizes(settings: dict[str, int], message: str) -> None:
    arguments = {"num_heads": HEADS, "num_queries": EVENTS} | settings
    with pytest.raises(ValueError, match=f"^{message}$"):
        MixedAttention(DIM, num_events=EVENTS, num_fields=FIELDS, **arguments)
