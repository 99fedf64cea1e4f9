import pytest
import torch
from torch import Tensor

from rankloom.layers.fusion import BilinearFusion


def fuse_by_loops(fusion: BilinearFusion, x: Tensor, y: Tensor) -> Tensor:
    heads, x_head, y_head, outputs = fusion.weight.shape
    rows = []
    for row in range(x.shape[0]):
        row_outputs = []
        for output in range(outputs):
            total = fusion.x_linear.bias[output]
            total = total + fusion.x_linear.weight[output] @ x[row]
            total = total + fusion.y_linear.weight[output] @ y[row]
            for head in range(heads):
                left = x[row, head * x_head : (head + 1) * x_head]
                right = y[row, head * y_head : (head + 1) * y_head]
                total = total + left @ fusion.weight[head, :, :, output] @ right
            row_outputs.append(total)
        rows.append(torch.stack(row_outputs))
    return torch.stack(rows)


@pytest.mark.parametrize(("heads", "outputs"), [(1, 1), (2, 1), (2, 3)])
def test_fusion_equals_the_loops_forward_and_gradient(heads: int, outputs: int) -> None:
    fusion = BilinearFusion(6, 4, heads, outputs).double()
    torch.nn.init.normal_(fusion.x_linear.bias)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    results = [fusion(x, y), fuse_by_loops(fusion, x, y)]
    torch.testing.assert_close(*results)
    weights = torch.randn(3, outputs, dtype=torch.float64)
    inputs = [x, y, *fusion.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in results]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_fusion_worked_by_hand() -> None:
    fusion = BilinearFusion(2, 2, 2, 1)
    with torch.no_grad():
        fusion.x_linear.weight.copy_(torch.tensor([[1.0, 0.0]]))
        fusion.x_linear.bias.fill_(0.5)
        fusion.y_linear.weight.copy_(torch.tensor([[0.0, 1.0]]))
        fusion.weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
    # 0.5 + 5 + 11 + 2*5*7 + 3*2*11
    assert fusion(torch.tensor([[5.0, 2.0]]), torch.tensor([[7.0, 11.0]])).item() == 152.5


@pytest.mark.parametrize("widths", [(6, 4), (4, 6)])
def test_heads_must_divide_both_widths(widths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"num_heads must divide .* got num_heads=4, widths"):
        BilinearFusion(*widths, 4, 1)
