from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankloom.layers.interaction import pair_sum
from rankloom.layers.pairs import num_pairs, pair_indices, pair_inner_products, pair_products


def pairs(fields: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(fields) for j in range(i + 1, fields)]


def products_by_loops(left: Tensor, right: Tensor) -> Tensor:
    products = [left[:, i] * right[:, j] for i, j in pairs(right.shape[1])]
    return torch.stack(products, dim=1) if products else (0 * left + 0 * right)[:, :0]


def inner_products_by_loops(vectors: Tensor) -> Tensor:
    return products_by_loops(vectors, vectors).sum(2)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    out = function(*inputs)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return torch.autograd.grad((out * weights).sum(), inputs)


def vectors_of(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("fields", [1, 2, 5])
def test_pairs_are_counted_and_ordered(fields: int) -> None:
    first, second = pair_indices(fields)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == pairs(fields)
    assert num_pairs(fields) == len(pairs(fields))


def test_worked_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert pair_products(vectors).tolist() == [[[3.0, 8.0], [5.0, 12.0], [15.0, 24.0]]]
    assert pair_inner_products(vectors).tolist() == [[11.0, 17.0, 39.0]]


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("fields", [1, 2, 6])
def test_products_equal_the_loops_forward_and_gradient(rows: int, fields: int) -> None:
    left, right = vectors_of(rows, fields, 4), vectors_of(rows, fields, 4)
    torch.testing.assert_close(pair_products(left, right), products_by_loops(left, right))
    torch.testing.assert_close(pair_products(right), products_by_loops(right, right))
    for actual, expected in zip(
        gradients(pair_products, left, right),
        gradients(products_by_loops, left, right),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        gradients(pair_products, right), gradients(lambda v: products_by_loops(v, v), right)
    )


def test_the_last_left_factor_may_be_missing() -> None:
    left, right = vectors_of(3, 5, 2), vectors_of(3, 5, 2)
    short = left[:, :-1].detach().requires_grad_()
    torch.testing.assert_close(pair_products(short, right), pair_products(left, right))
    to_short, _ = gradients(pair_products, short, right)
    to_left, _ = gradients(pair_products, left, right)
    torch.testing.assert_close(to_short, to_left[:, :-1])
    assert not to_left[:, -1].any()


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("fields", [1, 2, 6])
def test_inner_products_equal_the_loops_forward_and_gradient(rows: int, fields: int) -> None:
    vectors = vectors_of(rows, fields, 4)
    torch.testing.assert_close(pair_inner_products(vectors), inner_products_by_loops(vectors))
    torch.testing.assert_close(
        gradients(pair_inner_products, vectors), gradients(inner_products_by_loops, vectors)
    )


def test_all_pairs_together_are_the_pair_sum() -> None:
    vectors = torch.randn(4, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(pair_products(vectors).sum(1), pair_sum(vectors))
    torch.testing.assert_close(pair_inner_products(vectors).sum(1), pair_sum(vectors).sum(1))


@pytest.mark.parametrize("function", [pair_products, pair_inner_products])
def test_compiled_equals_eager(function: Callable[[Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    vectors = vectors_of(3, 5, 4)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(vectors), function(vectors))
    torch.testing.assert_close(gradients(compiled, vectors), gradients(function, vectors))


@pytest.mark.parametrize("function", [pair_products, pair_inner_products])
def test_autocast_rounds_the_products_and_keeps_the_gradients_type(
    function: Callable[[Tensor], Tensor],
) -> None:
    vectors = torch.randn(3, 5, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = function(vectors)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), function(vectors), rtol=0.02, atol=0.05)
    assert not torch.equal(rounded.float(), function(vectors))
    (actual,) = torch.autograd.grad(rounded.float().square().sum(), vectors)
    (expected,) = torch.autograd.grad(function(vectors).square().sum(), vectors)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.3)
