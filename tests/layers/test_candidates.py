import math

import pytest
import torch
from torch import Tensor

from rankloom.layers.candidates import CandidateRows

HEADS, HEAD_DIM, FIELDS, EVENTS = 2, 3, 2, 4
REQUEST = torch.tensor([2, 0, 2, 2, 0])  # in no order, none for request 1
REAL = torch.tensor([[False, False, True, True], [True] * 4, [False] * 4])


def drawn(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, HEADS, tokens, HEAD_DIM, dtype=torch.float64, requires_grad=True)


def found_by_loops(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What one query of one head finds."""
    if not keys:
        return torch.zeros_like(q)
    logits = torch.stack([q @ k for k in keys]) / math.sqrt(HEAD_DIM)
    return sum(a * v for a, v in zip(torch.softmax(logits, 0), values, strict=True))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["open", "causal", "alone"])
def test_it_equals_loops_over_candidates_heads_and_fields(kind: str, masked: bool) -> None:
    q, k, v = (drawn(len(REQUEST), FIELDS) for _ in range(3))
    events_k, events_v = drawn(3, EVENTS), drawn(3, EVENTS)
    rows, mask = CandidateRows(REQUEST, 3), REAL if masked else None
    if kind == "alone":
        out = rows.read(q, events_k, events_v, mask=mask)
    else:
        out = rows.attend(q, k, v, events_k, events_v, mask=mask, causal=kind == "causal")
    slow = torch.zeros_like(out)
    for c, request in enumerate(REQUEST.tolist()):
        seen = [e for e in range(EVENTS) if not masked or REAL[request, e]]
        for h in range(HEADS):
            for f in range(FIELDS):
                own = {"open": FIELDS, "causal": f + 1, "alone": 0}[kind]
                keys = [*events_k[request, h, seen], *k[c, h, :own]]
                values = [*events_v[request, h, seen], *v[c, h, :own]]
                slow[c, h, f] = found_by_loops(q[c, h, f], keys, values)
    torch.testing.assert_close(out, slow)
    given = [q, events_k, events_v] if kind == "alone" else [q, k, v, events_k, events_v]
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((o * weights).sum(), given) for o in (out, slow)]
    torch.testing.assert_close(*gradients)


def test_nobody_asks() -> None:
    rows = CandidateRows(torch.empty(0, dtype=torch.int64), 3)
    nothing, events = drawn(0, FIELDS), drawn(3, EVENTS)
    for out in (
        rows.read(nothing, events, events),
        rows.attend(nothing, nothing, nothing, events, events),
    ):
        assert out.shape == (0, HEADS, FIELDS, HEAD_DIM)
