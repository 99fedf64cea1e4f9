import math

import pytest
import torch
from torch import Tensor

from rankloom.layers.stream_attention import NetworkAwareAttention


def slow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v of one row, token by token."""
    out = []
    for query in q:
        scores = torch.stack([torch.dot(query, key) / math.sqrt(len(query)) for key in k])
        weights = (scores - scores.max()).exp()
        weights = weights / weights.sum()
        out.append(sum((w * value for w, value in zip(weights, v, strict=True)), v[0] * 0))
    return torch.stack(out)


def slow_fusion(module: NetworkAwareAttention, streams: Tensor, self_attention: bool) -> Tensor:
    """Equations 10 to 14, a row and a stream at a time."""
    rows = []
    for row in streams:
        current = list(row)
        for step in module.passes:
            q, k, v = zip(*[step.project(z).chunk(3, dim=-1) for z in current], strict=True)
            after = []
            for m in range(len(current)):
                others = [slow_attention(q[m], k[x], v[x]) for x in range(len(current)) if x != m]
                out = torch.zeros_like(current[m])
                if others:
                    out = out + torch.relu(step.cross[m](torch.cat(others, dim=-1)))
                if self_attention:
                    out = out + slow_attention(q[m], k[m], v[m])
                after.append(out)
            current = after
        rows.append(torch.relu(module.merge(torch.cat(current, dim=-1))))
    return torch.stack(rows)


@pytest.mark.parametrize("num_streams", [1, 2, 3])
@pytest.mark.parametrize("num_passes", [1, 3])
def test_attention_equals_the_equations(num_streams: int, num_passes: int) -> None:
    check(NetworkAwareAttention(num_streams, 4, num_passes=num_passes), num_streams, True)


@pytest.mark.parametrize("num_streams", [2, 3])
def test_without_self_attention_only_the_others_count(num_streams: int) -> None:
    check(NetworkAwareAttention(num_streams, 4, self_attention=False), num_streams, False)


def check(module: NetworkAwareAttention, num_streams: int, self_attention: bool) -> None:
    torch.manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            # Biases above zero keep the ReLUs open, so that every parameter has a gradient.
            parameter.copy_(0.5 * torch.randn_like(parameter) + (parameter.ndim == 1))
    streams = torch.randn(2, num_streams, 5, 4, dtype=torch.float64, requires_grad=True)
    fast, slow = module(streams), slow_fusion(module, streams, self_attention)
    assert fast.shape == (2, 5, 4)
    torch.testing.assert_close(fast, slow)
    inputs = (streams, *module.parameters())
    weights = torch.randn_like(slow)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), inputs)
    slow_gradients = torch.autograd.grad((slow * weights).sum(), inputs)
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_one_stream_alone_needs_self_attention() -> None:
    with pytest.raises(ValueError, match="needs two of them; got one"):
        NetworkAwareAttention(1, 4, self_attention=False)
