import math

import pytest
import torch

from rankloom.layers.event_compression import EventCompression

DIM, QUERIES, HEADS = 4, 3, 2


def test_it_equals_loops_over_queries_heads_and_events() -> None:
    module = EventCompression(DIM, QUERIES, HEADS).double()
    torch.nn.init.normal_(module.norm.weight)
    x = torch.randn(3, 5, DIM, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[False] * 5, [False, False, True, True, True], [True] * 5])
    out, there = module(x, real)
    attention, size = module.attention, DIM // HEADS
    slow = []
    for row in range(3):
        events = [
            e / (e.square().mean() + torch.finfo(e.dtype).eps).sqrt() for e in x[row][real[row]]
        ]
        events = [e * module.norm.weight for e in events]
        for query in module.queries:
            found = []
            for h in range(HEADS):
                piece = slice(h * size, (h + 1) * size)
                q = (attention.query.weight @ query)[piece]
                keys = [(attention.key.weight @ e)[piece] for e in events]
                values = [(attention.value.only.weight @ e)[piece] for e in events]
                total = torch.zeros(size, dtype=x.dtype)
                if events:
                    shares = torch.stack([q @ k for k in keys]) / math.sqrt(size)
                    pairs = zip(torch.softmax(shares, 0), values, strict=True)
                    total = sum(share * value for share, value in pairs)
                found.append(total)
            slow.append(query + attention.out.only.weight @ torch.cat(found))
    expected = torch.stack(slow).view(3, QUERIES, DIM)
    torch.testing.assert_close(out, expected)
    assert there.tolist() == [[False] * 3, [True] * 3, [True] * 3]
    weights = torch.randn_like(out)
    given = [x, *module.parameters()]
    gradients = [torch.autograd.grad((o * weights).sum(), given) for o in (out, expected)]
    torch.testing.assert_close(*gradients)


def test_queries_start_apart_and_of_unit_length() -> None:
    queries = EventCompression(64, 100, 4).queries.detach()
    assert queries.norm(dim=1).mean().item() == pytest.approx(1.0, rel=0.05)
    assert (queries @ queries.T - queries.square().sum(1).diag()).abs().max() < 0.7
