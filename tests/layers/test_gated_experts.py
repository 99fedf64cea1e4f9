import pytest
import torch
from torch.nn import functional

from rankloom.layers.gated_experts import (
    ExpertActivation,
    ExpertNetworks,
    SoftmaxGates,
    StackedLinear,
    weighted_sum,
)
from rankloom.layers.mlp import MLP


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_inputs", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_layers_are_single_ones(num_inputs: int, bias: bool) -> None:
    stack = StackedLinear(6, 3, 2, bias=bias)
    if stack.bias is not None:
        stack.bias.data = drawn(6, 2)
    x = drawn(num_inputs, 4, 3).requires_grad_()
    biases = [None] * 6 if stack.bias is None else list(stack.bias)
    expected = torch.stack(
        [
            functional.linear(x[index * num_inputs // 6], weight, biases[index])
            for index, weight in enumerate(stack.weight)
        ]
    )
    actual = stack(x)
    torch.testing.assert_close(actual, expected)
    wanted = drawn(6, 4, 2)
    parameters = [x, *stack.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters, wanted),
        torch.autograd.grad(expected, parameters, wanted),
    )


def test_a_stacked_layer_starts_as_a_single_one() -> None:
    torch.manual_seed(0)
    stack = StackedLinear(50, 30, 20)
    assert stack.weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.03)
    assert not stack.bias.any()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "tanh"])
def test_an_expert_is_a_network_of_hidden_layers(activation: ExpertActivation) -> None:
    experts = ExpertNetworks(3, 5, (4, 2), activation=activation)
    assert experts.out_features == 2
    stacks = [layer for layer in experts.layers if isinstance(layer, StackedLinear)]
    x = drawn(7, 5)
    outputs = experts(x)  # [batch, experts, width]
    for index in range(3):
        network = MLP(5, (4, 2), activation=activation)
        for layer, stack in zip(network.layers[::2], stacks, strict=True):
            stack.bias.data[index] = 0.1 * (index + 1)
            layer.weight.data, layer.bias.data = stack.weight[index], stack.bias[index]
        torch.testing.assert_close(experts(x)[:, index], network(x))
    assert not torch.equal(experts(x), outputs)  # biases are used
    torch.testing.assert_close(experts.stacked(x.unsqueeze(0)), experts(x).transpose(0, 1))


def test_experts_of_several_inputs() -> None:
    experts = ExpertNetworks(4, 5, (3, 2))
    x = drawn(2, 7, 5)
    both = experts.stacked(x)  # [experts, batch, width]
    torch.testing.assert_close(both[:2], experts.stacked(x[:1])[:2])
    torch.testing.assert_close(both[2:], experts.stacked(x[1:])[2:])


def test_dropout_after_every_layer_in_training() -> None:
    torch.manual_seed(0)
    experts = ExpertNetworks(2, 4, (8, 6), dropout=0.5, activation="tanh")
    x = drawn(200, 4)
    kept = experts.train()(x)
    assert 0.4 < (kept == 0).float().mean() < 0.6
    full = experts.eval()(x)
    assert (full != 0).all()
    # Hidden units are dropped too: those outputs that stay are no longer twice the full ones.
    assert not torch.allclose(kept[kept != 0], 2 * full[kept != 0])


def test_experts_without_layers() -> None:
    with pytest.raises(ValueError, match="^hidden must name the width of one layer or more; got n"):
        ExpertNetworks(2, 4, ())


def test_no_experts_give_nothing() -> None:
    assert ExpertNetworks(0, 4, (3, 2))(drawn(5, 4)).shape == (5, 0, 2)


def test_gates_sum_to_one() -> None:
    gates = SoftmaxGates(3, 4, 5)
    x = drawn(1, 6, 4)
    weights = gates(x)  # [gates, batch, experts]
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 6))
    scores = torch.stack([x[0] @ matrix.T for matrix in gates.project.weight])
    torch.testing.assert_close(weights, scores.exp() / scores.exp().sum(-1, keepdim=True))


def test_a_weighted_sum_by_hand() -> None:
    experts = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]])  # [2 experts, 1 row, width 2]
    weights = torch.tensor([[0.5], [0.25]])
    torch.testing.assert_close(weighted_sum(weights, experts), torch.tensor([[3.0, 6.0]]))
