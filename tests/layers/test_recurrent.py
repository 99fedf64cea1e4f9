import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.event_search import events_at
from rankloom.layers.recurrent import AGRU, AIGRU, AUGRU, GRU, align_left

LENGTHS = [3, 0, 5, 1]


def right_aligned() -> Tensor:
    return torch.arange(5) >= 5 - torch.tensor(LENGTHS).unsqueeze(1)


def left_aligned() -> Tensor:
    return torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)


def build(kind: type[nn.Module], in_dim: int = 3) -> nn.Module:
    layer = kind(in_dim, 4).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def torch_gru(layer: GRU) -> nn.GRU:
    """torch's own with the same weights."""
    twin = nn.GRU(3, 4, batch_first=True).double()
    with torch.no_grad():
        twin.weight_ih_l0.copy_(layer.of_event.weight)
        twin.bias_ih_l0.copy_(layer.of_event.bias)
        twin.weight_hh_l0.copy_(layer.of_state.weight)
        twin.bias_hh_l0.copy_(layer.of_state.bias)
    return twin


def test_rows_are_rotated_to_the_left() -> None:
    places, mask = align_left(right_aligned())
    assert torch.equal(mask, left_aligned())
    assert places.tolist()[0] == [2, 3, 4, 0, 1]
    x = torch.arange(5.0).expand(4, 5).unsqueeze(2)
    assert events_at(places, x)[0, :, 0].tolist() == [2, 3, 4, 0, 1]
    assert events_at(places, x)[3, :1, 0].tolist() == [4]


def test_states_are_those_of_torch() -> None:
    layer = build(GRU)
    twin = torch_gru(layer)
    x = torch.randn(4, 5, 3, dtype=torch.double, requires_grad=True)
    outputs = [layer(x), twin(x)[0]]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    for ours, theirs in ((x, x), (layer.of_state.weight, twin.weight_hh_l0)):
        actual, expected = (
            torch.autograd.grad((out * weights).sum(), parameter, retain_graph=True)
            for out, parameter in zip(outputs, (ours, theirs), strict=True)
        )
        torch.testing.assert_close(actual, expected)


def test_start_is_that_of_torch() -> None:
    for kind in (GRU, AUGRU, AGRU):
        for parameter in kind(9, 16).parameters():
            assert 0.2 < parameter.abs().max() < 0.25


def by_loops(layer: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """Last states, one row and event at a time, events only."""
    last = []
    for row, shares, length in zip(x, weights, LENGTHS, strict=True):
        h = torch.zeros(4, dtype=torch.double)
        for event, a in zip(row[:length], shares, strict=False):
            gru = layer.gru if isinstance(layer, AIGRU) else layer
            i = event * a if isinstance(layer, AIGRU) else event
            of_event = (gru.of_event.weight @ i + gru.of_event.bias).split(4)
            of_state = (gru.of_state.weight @ h + gru.of_state.bias).split(4)
            r = torch.sigmoid(of_event[0] + of_state[0])
            candidate = torch.tanh(of_event[-1] + r * of_state[-1])
            if isinstance(layer, AGRU):
                update = a
            else:
                update = 1 - torch.sigmoid(of_event[1] + of_state[1])
                update = a * update if isinstance(layer, AUGRU) else update
            h = (1 - update) * h + update * candidate
        last.append(h)
    return torch.stack(last)


@pytest.mark.parametrize("kind", [AIGRU, AGRU, AUGRU])
def test_last_states_are_those_of_the_formula(kind: type[nn.Module]) -> None:
    layer, mask = build(kind), left_aligned()
    x = torch.randn(4, 5, 3, dtype=torch.double, requires_grad=True)
    weights = (torch.rand(4, 5, dtype=torch.double) * mask).requires_grad_()
    outputs = [layer(x, weights, mask), by_loops(layer, x, weights)]
    torch.testing.assert_close(*outputs)
    assert not outputs[0][1].any()
    direction = torch.randn_like(outputs[0])
    inputs = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", [AIGRU, AUGRU])
def test_full_attention_everywhere_is_a_gru(kind: type[nn.Module]) -> None:
    layer, gru, mask = build(kind), build(GRU), left_aligned()
    inner = layer.gru if isinstance(layer, AIGRU) else layer
    gru.load_state_dict(inner.state_dict())
    x = torch.randn(4, 5, 3, dtype=torch.double)
    states = gru(x)
    last = torch.stack([states[i, max(n - 1, 0)] * (n > 0) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(layer(x, mask.double(), mask), last)


def test_an_event_without_attention_leaves_the_state() -> None:
    """Of a gate that is multiplied, not of an input that is."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    x = torch.randn(1, 3, 3, dtype=torch.double)
    weights = torch.tensor([[0.4, 0.0, 0.7]], dtype=torch.double)
    kept = [0, 2]
    for kind, same in ((AUGRU, True), (AGRU, True), (AIGRU, False)):
        layer = build(kind)
        whole = layer(x, weights, mask)
        assert torch.allclose(layer(x[:, kept], weights[:, kept], mask[:, kept]), whole) == same
