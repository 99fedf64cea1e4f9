import pytest
import torch
from torch import Tensor

from rankloom.layers.multi_head_target import MultiHeadTargetAttention


def by_loops(
    layer: MultiHeadTargetAttention, target: Tensor, events: Tensor, mask: Tensor
) -> Tensor:
    """One row, head and event at a time, queries, keys and values as they are written."""
    rows = []
    for t, row, real in zip(target, events, mask, strict=True):
        q = (layer.query.weight @ t).chunk(layer.num_heads)
        summary = []
        for head in range(layer.num_heads):
            scores, values = [], []
            for event, there in zip(row, real, strict=True):
                if there:
                    k = (layer.key.weight @ event).chunk(layer.num_heads)[head]
                    scores.append(q[head] @ k / len(k) ** 0.5)
                    values.append((layer.value.weight @ event).chunk(layer.num_heads)[head])
            if scores:
                weights = torch.stack(scores).softmax(0)
                summary.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            else:
                summary.append(torch.zeros_like(q[head]))
        rows.append(layer.out.weight @ torch.cat(summary))
    return torch.stack(rows)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("length", [5, 70])
def test_it_equals_attention_head_by_head(num_heads, length) -> None:
    torch.manual_seed(0)
    layer = MultiHeadTargetAttention(4, 7, 5, dim=6, num_heads=num_heads).double()
    target = torch.randn(3, 4).double().requires_grad_()
    events = torch.randn(3, length, 7).double().requires_grad_()
    mask = torch.rand(3, length) < 0.6
    mask[1] = False
    outputs = [layer(target, events, mask), by_loops(layer, target, events, mask)]
    torch.testing.assert_close(*outputs)
    assert not outputs[0][1].any()
    assert outputs[0][0].any()
    weights = torch.randn_like(outputs[0])
    inputs = [target, events, *layer.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_rows_none_or_one_and_autocast() -> None:
    layer = MultiHeadTargetAttention(4, 7, 5, dim=6, num_heads=2)
    for rows in (0, 1):
        out = layer(torch.randn(rows, 4), torch.randn(rows, 3, 7), torch.ones(rows, 3).bool())
        assert out.shape == (rows, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(2, 4), torch.randn(2, 3, 7), torch.ones(2, 3).bool())
    assert out.dtype == torch.bfloat16


def test_weights_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    layer = MultiHeadTargetAttention(4, 7, 5, dim=6, dropout=0.5)
    inputs = torch.randn(2, 4), torch.randn(2, 9, 7), torch.ones(2, 9).bool()
    assert not torch.equal(layer(*inputs), layer(*inputs))
    layer.eval()
    assert torch.equal(layer(*inputs), layer(*inputs))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^num_heads must divide dim; got dim=6, num_heads=4$"):
        MultiHeadTargetAttention(4, 7, 5, dim=6, num_heads=4)
