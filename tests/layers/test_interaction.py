import pytest
import torch
from torch import Tensor

from rankloom.layers.interaction import (
    CrossNetwork,
    LowRankCross,
    LowRankCrossNetwork,
    RankOneCross,
    RankOneCrossNetwork,
    TaskSum,
    pair_sum,
)


def pairs_by_loops(vectors: Tensor) -> Tensor:
    result = 0 * vectors[:, 0]  # keeps a single field differentiable
    for i in range(vectors.shape[1]):
        for j in range(i + 1, vectors.shape[1]):
            result = result + vectors[:, i] * vectors[:, j]
    return result


def test_pair_sum_worked_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    # 1*3 + 1*5 + 3*5 and 2*4 + 2*6 + 4*6
    assert pair_sum(vectors).tolist() == [[23.0, 44.0]]


@pytest.mark.parametrize("fields", [1, 2, 7])
def test_pair_sum_equals_the_loops_forward_and_gradient(fields: int) -> None:
    vectors = torch.randn(5, fields, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(pair_sum(vectors), pairs_by_loops(vectors))
    weights = torch.randn(5, 3, dtype=torch.float64)
    outputs = [(pairs(vectors) * weights).sum() for pairs in (pair_sum, pairs_by_loops)]
    actual, expected = (torch.autograd.grad(out, vectors)[0] for out in outputs)
    torch.testing.assert_close(actual, expected)


def test_task_sum_of_one_task_has_no_parameters_and_several_start_from_it() -> None:
    x = torch.randn(4, 3)
    single = TaskSum(3, 1)
    assert list(single.parameters()) == []
    torch.testing.assert_close(single(x), x.sum(1, keepdim=True))
    torch.testing.assert_close(TaskSum(3, 2)(x), x.sum(1, keepdim=True).expand(4, 2))


def test_cross_network_worked_by_hand() -> None:
    network = CrossNetwork(2, 2)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        network.layers[0].bias.copy_(torch.tensor([1.0, 0.0]))
        network.layers[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        network.layers[1].bias.copy_(torch.tensor([0.0, -1.0]))
    # x0 = (2, 3). Layer 1: W x + b = (3, 5); x = (2*3 + 2, 3*5 + 3) = (8, 18).
    # Layer 2: W x + b = (18, 7); x = (2*18 + 8, 3*7 + 18) = (44, 39).
    assert network(torch.tensor([[2.0, 3.0]])).tolist() == [[44.0, 39.0]]


def cross_by_loops(network: CrossNetwork, x0: Tensor) -> Tensor:
    rows = []
    for row in x0:
        x = row
        for layer in network.layers:
            inner = [
                sum(layer.weight[i, j] * x[j] for j in range(len(row))) + layer.bias[i]
                for i in range(len(row))
            ]
            x = torch.stack([row[i] * inner[i] + x[i] for i in range(len(row))])
        rows.append(x)
    return torch.stack(rows)


def mixture_by_loops(network: LowRankCrossNetwork, x0: Tensor) -> Tensor:
    """The paper's equations, one row and one expert at a time."""
    rows = []
    for row in x0:
        x = row
        for layer in network.layers:
            num_experts = layer.down.shape[0]
            gates = torch.ones(1, dtype=x.dtype)
            if layer.gate is not None:
                gates = torch.softmax(layer.gate.weight @ x, 0)
            mixed = torch.zeros_like(row)
            for expert in range(num_experts):
                v, c, u = layer.down[expert].T, layer.inner[expert], layer.up[expert].T
                inner = torch.tanh(c @ torch.tanh(v.T @ x))
                mixed = mixed + gates[expert] * (row * (u @ inner + layer.bias))
            x = mixed + x
        rows.append(x)
    return torch.stack(rows)


def compare(network, by_loops, x0: Tensor) -> None:
    """Outputs and gradients (of input and parameters) against the loops."""
    weights = torch.randn_like(x0)
    inputs = [x0.requires_grad_(), *network.parameters()]
    outputs = [network(x0), by_loops(network, x0)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_cross_network_equals_the_loops() -> None:
    network = CrossNetwork(4, 3).double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias)
    compare(network, cross_by_loops, torch.randn(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_low_rank_mixture_equals_the_loops(num_experts: int, rows: int) -> None:
    network = LowRankCrossNetwork(5, 2, rank=2, num_experts=num_experts).double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias)
    compare(network, mixture_by_loops, torch.randn(rows, 5, dtype=torch.float64))


def test_one_full_rank_expert_near_zero_is_a_full_cross_layer() -> None:
    # tanh(z) = z near zero: scaling V down and U up by the same factor leaves U C V^T.
    width, scale = 4, 1e-5
    full = CrossNetwork(width, 1).double()
    low = LowRankCross(width, rank=width, num_experts=1).double()
    with torch.no_grad():
        identity = torch.eye(width, dtype=torch.float64)
        low.down[0] = identity * scale
        low.inner[0] = identity
        low.up[0] = full.layers[0].weight.T / scale
        low.bias.copy_(full.layers[0].bias.normal_())
    x0 = torch.randn(6, width, dtype=torch.float64)
    torch.testing.assert_close(low(x0, x0), full(x0), rtol=1e-7, atol=1e-7)


def test_equal_experts_are_one_expert_whatever_the_gate() -> None:
    one = LowRankCross(4, rank=2, num_experts=1)
    three = LowRankCross(4, rank=2, num_experts=3)
    with torch.no_grad():
        for name in ("down", "inner", "up"):
            getattr(three, name).copy_(getattr(one, name).expand_as(getattr(three, name)))
        three.bias.copy_(one.bias)
    x0, x = torch.randn(2, 5, 4)
    torch.testing.assert_close(three(x0, x), one(x0, x))


def test_cross_network_under_autocast_rounds_once_and_stays_close() -> None:
    torch.manual_seed(0)
    network = CrossNetwork(12, 3)
    x = torch.randn(40, 12)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
    assert rounded.dtype == torch.bfloat16
    exact = network(x)
    assert exact.dtype == torch.float32
    # Each of three layers rounds to 8 bits of mantissa.
    error = (rounded.float() - exact).abs().max() / exact.abs().max()
    assert error < 3 * 2**-7


def rank_one_by_loops(network: RankOneCrossNetwork, x0: Tensor) -> Tensor:
    """The paper's outer products, one row at a time."""
    rows = []
    for row in x0:
        x = row
        for layer in network.layers:
            x = torch.outer(row, x) @ layer.product.weight[0] + layer.bias + x
        rows.append(x)
    return torch.stack(rows)


def test_rank_one_cross_worked_by_hand() -> None:
    layer = RankOneCross(2)
    with torch.no_grad():
        layer.product.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    # w^T x = 5 - 2 = 3; x0 * 3 + b = (6.5, 9). The residual is the caller's.
    assert layer(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 2.0]])).tolist() == [[6.5, 9.0]]


def test_rank_one_cross_network_worked_by_hand() -> None:
    network = RankOneCrossNetwork(2, 2)
    with torch.no_grad():
        network.layers[0].product.weight.copy_(torch.tensor([[1.0, 1.0]]))
        network.layers[0].bias.copy_(torch.tensor([1.0, 0.0]))
        network.layers[1].product.weight.copy_(torch.tensor([[2.0, -1.0]]))
        network.layers[1].bias.copy_(torch.tensor([0.0, -1.0]))
    # x0 = (2, 3). Layer 1: w^T x = 5; x = (10 + 1 + 2, 15 + 0 + 3) = (13, 18).
    # Layer 2: w^T x = 26 - 18 = 8; x = (16 + 0 + 13, 24 - 1 + 18) = (29, 41).
    assert network(torch.tensor([[2.0, 3.0]])).tolist() == [[29.0, 41.0]]


@pytest.mark.parametrize("num_layers", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 4])
def test_rank_one_recurrence_equals_the_outer_products(num_layers: int, rows: int) -> None:
    network = RankOneCrossNetwork(5, num_layers).double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias)
    compare(network, rank_one_by_loops, torch.randn(rows, 5, dtype=torch.float64))


def test_rank_one_recurrence_equals_its_layers_one_by_one() -> None:
    network = RankOneCrossNetwork(5, 3).double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias)
    x = x0 = torch.randn(4, 5, dtype=torch.float64)
    for layer in network.layers:
        x = layer(x0, x) + x
    torch.testing.assert_close(network(x0), x)


def test_rank_one_cross_is_a_full_cross_with_equal_rows() -> None:
    full, rank_one = CrossNetwork(4, 2).double(), RankOneCrossNetwork(4, 2).double()
    # Full layers put the bias inside the product with x0, so the equality is of those without.
    with torch.no_grad():
        for source, target in zip(rank_one.layers, full.layers, strict=True):
            target.weight.copy_(source.product.weight.expand(4, 4))
    x0 = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(rank_one(x0), full(x0))


def test_rank_one_cross_network_takes_an_empty_batch() -> None:
    assert RankOneCrossNetwork(3, 2)(torch.zeros(0, 3)).shape == (0, 3)


def test_rank_one_recurrence_under_autocast_stays_close() -> None:
    network = RankOneCrossNetwork(12, 6)
    x = torch.randn(40, 12)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
    assert rounded.dtype == torch.float32  # only the products are rounded
    error = (rounded - network(x)).abs().max() / network(x).abs().max()
    assert 0 < error < 6 * 2**-7
