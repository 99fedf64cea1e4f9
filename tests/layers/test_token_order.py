import pytest
import torch

from rankloom.layers.attention import attention
from rankloom.layers.token_order import CausalOrder, NoOrder

REAL = torch.tensor([[False, True, True], [True, True, True]])


def test_causal_order_by_hand() -> None:
    mask = CausalOrder(4)(torch.zeros(2, 3, 1), REAL)
    assert mask.tolist() == [
        [[[True, False, False], [False, True, False], [False, True, True]]],
        [[[True, False, False], [True, True, False], [True, True, True]]],
    ]
    assert torch.equal(CausalOrder(3)(torch.zeros(2, 3, 1), None), mask[1:].expand(2, -1, -1, -1))


def test_without_order_only_padding_is_hidden() -> None:
    x = torch.zeros(2, 3, 1)
    assert NoOrder()(x, None) is None
    assert NoOrder()(x, REAL).tolist() == [[[[False, True, True]]], [[[True, True, True]]]]


@pytest.mark.parametrize("order", [CausalOrder(3), NoOrder()])
def test_padding_reaches_no_other_token_and_none_is_lost(order) -> None:
    x = torch.randn(2, 3, 4)
    out = attention(x, x, x, mask=order(x, REAL))
    assert out.isfinite().all()
    changed = x.clone()
    changed[0, 0] += 1
    torch.testing.assert_close(
        attention(changed, changed, changed, mask=order(x, REAL))[:, 1:], out[:, 1:]
    )


def test_open_tokens_read_each_other() -> None:
    order = CausalOrder(4, num_open=2)
    mask = order(torch.zeros(1, 4, 3), None)
    assert mask.int()[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    # The first tokens alone, as when events are encoded ahead.
    assert order(torch.zeros(1, 2, 3), None).int()[0, 0].tolist() == [[1, 0], [1, 1]]
