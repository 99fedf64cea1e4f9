import pytest
import torch
from torch import Tensor

from rankloom.layers.sinkhorn import sinkhorn


def by_entries(logits: Tensor, num_steps: int) -> Tensor:
    """Each entry divided by its column's sum, then by its row's, entry by entry."""
    rows, columns = logits.shape
    m = [[logits[i, j].exp() for j in range(columns)] for i in range(rows)]
    for _ in range(num_steps):
        sums = [sum(m[i][j] for i in range(rows)) for j in range(columns)]
        m = [[m[i][j] / sums[j] for j in range(columns)] for i in range(rows)]
        m = [[entry / sum(row) for entry in row] for row in m]
    return torch.stack([torch.stack(row) for row in m])


def test_one_step_by_hand() -> None:
    matrix = torch.tensor([[1.0, 3.0], [1.0, 1.0]])  # columns sum to 2 and 4
    torch.testing.assert_close(
        sinkhorn(matrix.log(), 1), torch.tensor([[0.4, 0.6], [2 / 3, 1 / 3]])
    )


def test_it_equals_the_divisions_one_entry_at_a_time() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(logits)
    outputs = [
        sinkhorn(logits, 3),
        torch.stack([by_entries(m, 3) for m in logits.flatten(0, 1)]).view_as(logits),
    ]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad((out * weights).sum(), logits)[0] for out in outputs]
    torch.testing.assert_close(*gradients)


def test_rows_always_sum_to_one_and_columns_in_the_end() -> None:
    logits = 2 * torch.randn(5, 4, 4)
    few, many = sinkhorn(logits, 1), sinkhorn(logits, 200)
    torch.testing.assert_close(few.sum(-1), torch.ones(5, 4))
    assert (few.sum(-2) - 1).abs().max() > 0.01
    torch.testing.assert_close(many.sum(-1), torch.ones(5, 4))
    torch.testing.assert_close(many.sum(-2), torch.ones(5, 4))


def test_symmetric_logits_give_a_symmetric_matrix_in_the_end() -> None:
    logits = torch.randn(4, 4)
    limit = sinkhorn(logits + logits.T, 200)
    torch.testing.assert_close(limit, limit.T)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    logits = 1000 * torch.randn(3, 3)
    logits[0] -= 5000  # exp of this row is zero in any floating point number
    logits.requires_grad_()
    matrix = sinkhorn(logits, 5)
    torch.testing.assert_close(matrix.sum(1), torch.ones(3))
    matrix.square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_low_precision_is_widened() -> None:
    logits = torch.randn(4, 4)
    plain = sinkhorn(logits, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(logits, 5), plain)
        assert sinkhorn(logits.bfloat16(), 5).dtype == torch.float32
    torch.testing.assert_close(sinkhorn(logits.bfloat16(), 5), plain, rtol=0, atol=0.02)


def test_no_matrices_give_none() -> None:
    assert sinkhorn(torch.zeros(0, 3, 3), 2).shape == (0, 3, 3)


def test_there_is_at_least_one_step() -> None:
    with pytest.raises(ValueError, match=r"num_steps must be at least 1; got 0"):
        sinkhorn(torch.zeros(2, 2), 0)
