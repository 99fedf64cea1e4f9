import torch

from rankloom.layers.gating import FeatureGate, PriorGate


def test_feature_gate_worked_by_hand() -> None:
    gate = FeatureGate(1, [], 2)
    (layer,) = gate.network.layers
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]))
        layer.bias.copy_(torch.tensor([0.0, torch.tensor(3.0).log()]))
    # Gates 2 sigmoid(0) = 1 and 2 sigmoid(ln 3) = 1.5 at context zero.
    out = gate(torch.zeros(2, 1), torch.tensor([[4.0, 2.0], [-1.0, -2.0]]))
    torch.testing.assert_close(out, torch.tensor([[4.0, 3.0], [-1.0, -3.0]]))


def test_gates_stay_between_zero_and_two() -> None:
    gate = FeatureGate(3, [8], 4)
    out = gate(100 * torch.randn(50, 3), torch.ones(50, 4))
    assert out.min() >= 0
    assert out.max() <= 2
    assert out.max() - out.min() > 1


def test_one_context_row_gates_every_row() -> None:
    gate, context = FeatureGate(3, [8], 4), torch.randn(1, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(gate(context, x), gate(context.expand(5, 3), x))


def test_a_prior_gate_trains_its_prior_and_not_its_context() -> None:
    torch.manual_seed(0)
    gate = PriorGate(2, 3, 4, 5)
    prior, context, x = (torch.randn(6, width, requires_grad=True) for width in (2, 3, 5))
    out = gate(prior, context, x)
    for row in range(6):
        read = torch.cat([prior[row], context[row]])
        hidden = torch.relu(gate.reduce.joint(read))
        torch.testing.assert_close(out[row], x[row] * 2 * torch.sigmoid(gate.expand(hidden)))
    out.square().sum().backward()
    assert prior.grad.any()
    assert x.grad.any()
    assert context.grad is None
