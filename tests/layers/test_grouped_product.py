import pytest
import torch

from rankloom.layers.grouped_product import grouped_product


@pytest.mark.parametrize("sizes", [[2, 0, 3], [5], [0, 0, 5], [1, 1, 1, 1, 1], [0]], ids=str)
def test_every_group_is_a_linear_layer(sizes: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 3, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(len(sizes), 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(sizes), 4, dtype=torch.float64)
    expected = torch.cat(
        [part @ matrix.T for part, matrix in zip(x.split(sizes), matrices, strict=True)]
    )
    wanted = torch.autograd.grad((expected * weight).sum(), [x, matrices])
    out = grouped_product(x, matrices, sizes)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad((out * weight).sum(), [x, matrices])
    for actual, gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, gradient)


def test_rows_that_do_not_lie_in_one_block_of_memory() -> None:
    x = torch.randn(3, 5).T  # columns of another tensor
    matrices = torch.randn(2, 3, 4).mT  # transposed
    expected = torch.cat([x[:2] @ matrices[0].T, x[2:] @ matrices[1].T])
    torch.testing.assert_close(grouped_product(x, matrices, [2, 3]), expected)


def test_autocast_rounds_as_a_linear_layer_does() -> None:
    x, matrices = torch.randn(4, 3), torch.randn(1, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = grouped_product(x, matrices, [4])
        expected = torch.nn.functional.linear(x, matrices[0])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
