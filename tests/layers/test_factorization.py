import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.factorization import FactorizationBlock, TokenLinear, token_projection


def test_token_linear_weighs_tokens_and_leaves_features_apart() -> None:
    layer = TokenLinear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
    torch.testing.assert_close(layer(x), torch.tensor([[[7.0, 70.0], [-2.0, -20.0]]]))


def test_token_projection_is_nothing_when_the_number_is_right() -> None:
    x = torch.randn(2, 3, 4)
    assert token_projection(3, 3)(x) is x
    assert token_projection(3, 5)(x).shape == (2, 5, 4)


def slow_block(block: FactorizationBlock, left: Tensor, x: Tensor) -> Tensor:
    """Every pair product by itself, then the compression."""
    rows = []
    for row in range(len(x)):
        products = torch.stack([torch.stack([torch.dot(a, b) for b in x[row]]) for a in left[row]])
        rows.append((products @ block.compress.weight.T).flatten())
    return block.network(block.norm(torch.stack(rows)))


@pytest.mark.parametrize(("left_tokens", "rank"), [(4, 2), (3, 9)])
def test_block_equals_all_pair_products(left_tokens: int, rank: int) -> None:
    torch.manual_seed(0)
    block = FactorizationBlock(
        left_tokens,
        4,
        5,
        rank=rank,
        out_tokens=2,
        network=lambda width: nn.Sequential(nn.Linear(width, 10), nn.Tanh()),
    ).double()
    assert block.compress.weight.shape == (min(rank, 4), 4)
    left = torch.randn(3, left_tokens, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    inputs = (left, x, *block.parameters())
    fast, slow = block(left, x), slow_block(block, left, x)
    assert fast.shape == (3, 2, 5)
    torch.testing.assert_close(fast.flatten(1), slow)
    weights = torch.randn_like(slow)
    fast_gradients = torch.autograd.grad((fast.flatten(1) * weights).sum(), inputs)
    slow_gradients = torch.autograd.grad((slow * weights).sum(), inputs)
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(one, other)
