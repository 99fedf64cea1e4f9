import pytest
import torch
from torch import nn

from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import MLP, JointLinear, linear


def test_linear_starts_xavier_normal_with_zero_bias() -> None:
    torch.manual_seed(0)
    layer = linear(300, 100)
    assert layer.bias.abs().max() == 0
    expected = (2 / 400) ** 0.5
    assert 0.98 * expected < layer.weight.std() < 1.02 * expected
    # Normal, not uniform: a uniform draw of this deviation ends at sqrt(3) deviations.
    assert layer.weight.abs().max() > 3 * expected


def test_order_of_a_hidden_layer() -> None:
    network = MLP(3, [5, 4], out_features=2, dropout=0.5, batch_norm=True, activation="tanh")
    kinds = [type(layer) for layer in network.layers]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.Tanh, Dropout]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert network.out_features == 2


def test_network_worked_by_hand() -> None:
    network = MLP(1, [2], out_features=1)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network.layers[0].bias.copy_(torch.tensor([0.0, 1.0]))
        network.layers[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
    # x = 3: relu(3, -2) = (3, 0) -> 6; x = -1: relu(-1, 2) = (0, 2) -> 6; x = 0.5 -> 1 + 1.5
    x = torch.tensor([[3.0], [-1.0], [0.5]])
    assert network(x).flatten().tolist() == [6.0, 6.0, 2.5]
    assert x.tolist() == [[3.0], [-1.0], [0.5]]  # the in-place activation spares the input


def test_without_hidden_layers_or_output() -> None:
    x = torch.randn(2, 3)
    assert MLP(3, []).out_features == 3
    assert MLP(3, [])(x) is x
    assert MLP(3, [], out_features=1)(x).shape == (2, 1)
    assert MLP(3, [7]).out_features == 7


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh", "sigmoid", "none"]
)
def test_named_activations(name) -> None:
    expected = {
        "relu": torch.relu,
        "leaky_relu": nn.functional.leaky_relu,
        "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
        "gelu": nn.functional.gelu,
        "silu": nn.functional.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "none": lambda x: x,
    }[name]
    network = MLP(3, [4], activation=name)
    x = torch.randn(6, 3)
    torch.testing.assert_close(network(x), expected(network.layers[0](x)))


def test_activation_may_be_a_builder_that_knows_the_width() -> None:
    widths = []

    def build(width: int) -> nn.Module:
        widths.append(width)
        return nn.ReLU()

    MLP(3, [5, 4], activation=build)
    assert widths == [5, 4]


def test_joint_linear_equals_a_linear_layer_over_joined_inputs() -> None:
    layer = JointLinear([2, 3, 4], 2)
    nn.init.normal_(layer.joint.bias)
    parts = [torch.randn(5, width) for width in (2, 3, 4)]
    torch.testing.assert_close(layer(*parts), layer.joint(torch.cat(parts, 1)))
    with pytest.raises(ValueError):
        layer(*parts[:2])
