import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.partitioned_norm import PartitionedNorm


def randomised(num_scenarios: int, width: int) -> PartitionedNorm:
    torch.manual_seed(0)
    norm = PartitionedNorm(num_scenarios, width)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def reference(norm: PartitionedNorm, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Rows as a scenario with these statistics, and index 0 for all: the unknown one."""
    return (x - mean) / (var + norm.eps).sqrt()


def test_every_scenario_by_its_own_rows() -> None:
    norm = PartitionedNorm(2, 1, eps=1e-12)
    x = torch.tensor([[1.0], [10.0], [3.0], [20.0]])
    out = norm(x, torch.tensor([1, 2, 1, 2], dtype=torch.int32))
    torch.testing.assert_close(out, torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]))
    assert norm.running_mean.flatten().tolist() == [2, 15]
    torch.testing.assert_close(norm.running_var.flatten(), torch.tensor([2.0, 50.0]))  # unbiased
    assert norm.num_updates.tolist() == [1, 1]


def test_averages_are_plain_means_until_the_momentum_is_the_larger_share() -> None:
    norm = PartitionedNorm(1, 1, momentum=0.4)
    for mean, expected in ((0.0, 0.0), (4.0, 2.0), (7.0, 4.0)):  # shares 1, 1/2, then 0.4
        norm(torch.tensor([[mean - 1], [mean + 1]]), torch.ones(2, dtype=torch.int32))
        torch.testing.assert_close(norm.running_mean, torch.tensor([[expected]]))


def test_one_scenario_is_batch_norm() -> None:
    norm, batch_norm = PartitionedNorm(1, 3), nn.BatchNorm1d(3)
    x = torch.randn(7, 3)
    torch.testing.assert_close(norm(x, torch.ones(7, dtype=torch.int32)), batch_norm(x))


def test_one_row_or_none_teaches_nothing() -> None:
    norm = randomised(3, 2).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(4, 2)
    out = norm(x, torch.tensor([1, 1, 1, 2]))  # scenario 2 once, scenario 3 never
    for name in ("running_mean", "running_var", "num_updates"):
        assert torch.equal(norm.state_dict()[name][1:], before[name][1:])
        assert not torch.equal(norm.state_dict()[name][0], before[name][0])
    norm.load_state_dict(before)
    torch.testing.assert_close(out[3:], norm.eval()(x, torch.tensor([1, 1, 1, 2]))[3:])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_a_row_or_none(rows: int) -> None:
    norm = randomised(2, 3)
    before = norm.running_var.clone()
    x = torch.randn(rows, 3)
    scenario = torch.ones(rows, dtype=torch.int32)
    torch.testing.assert_close(norm.train()(x, scenario), norm.eval()(x, scenario))
    assert torch.equal(norm.running_var, before)


def test_evaluation_uses_the_moving_averages_and_no_other_row() -> None:
    norm = randomised(3, 2).eval()
    affine = norm.affine
    x, scenario = torch.randn(6, 2), torch.tensor([3, 0, 1, 2, 0, 1])
    out = norm(x, scenario)
    for row, known in enumerate(scenario.tolist()):
        own = [known - 1] if known else [0, 1, 2]  # the unknown one: means over all
        normal = reference(
            norm, x[row], norm.running_mean[own].mean(0), norm.running_var[own].mean(0)
        )
        gain = affine.gain * affine.scenario_gain[own].mean(0)
        shift = affine.shift + affine.scenario_shift[own].mean(0)
        torch.testing.assert_close(out[row], normal * gain + shift)
        torch.testing.assert_close(norm(x[row : row + 1], scenario[row : row + 1])[0], out[row])


def test_unknown_rows_in_training_get_means_and_teach_nothing() -> None:
    norm = randomised(2, 1).train()
    x = torch.tensor([[1.0], [3.0], [5.0], [9.0], [100.0]])
    scenario = torch.tensor([1, 1, 2, 2, 0])
    alone = randomised(2, 1).train()
    torch.testing.assert_close(alone(x[:4], scenario[:4]), norm(x, scenario)[:4])
    assert torch.equal(alone.running_var, norm.running_var)
    affine = norm.affine
    normal = reference(norm, x[4], torch.tensor([4.5]), torch.tensor([2.5]))  # variances 1 and 4
    expected = normal * affine.gain * affine.scenario_gain.mean(0)
    expected = expected + affine.shift + affine.scenario_shift.mean(0)
    torch.testing.assert_close(norm(x, scenario)[4], expected)


def test_gradients_are_those_of_a_norm_for_every_scenario() -> None:
    norm = randomised(3, 2).double().train()
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    scenario = torch.tensor([1, 2, 2, 1, 1, 2, 2, 1, 2])
    factor = torch.randn(9, 2, dtype=torch.float64)
    affine = norm.affine
    parts = torch.zeros_like(x)
    for known in (1, 2):
        own = (scenario == known).nonzero().squeeze(1)
        gain = affine.gain * affine.scenario_gain[known - 1]
        shift = affine.shift + affine.scenario_shift[known - 1]
        normal = functional.batch_norm(x[own], None, None, gain, shift, training=True, eps=norm.eps)
        parts = parts.index_add(0, own, normal)
    wanted = [x, *norm.parameters()]
    expected = torch.autograd.grad((parts * factor).sum(), wanted)
    actual = torch.autograd.grad((norm(x, scenario) * factor).sum(), wanted)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_without_gains_and_shifts() -> None:
    norm = PartitionedNorm(2, 3, affine=False)
    assert list(norm.parameters()) == []
    x, scenario = torch.randn(8, 3), torch.tensor([1, 2] * 4)
    torch.testing.assert_close(norm(x, scenario), PartitionedNorm(2, 3)(x, scenario))


def test_half_precision_is_normalised_in_full() -> None:
    norm = PartitionedNorm(1, 1)
    x = torch.tensor([[256.0], [258.0]], dtype=torch.bfloat16)
    assert norm(x, torch.ones(2, dtype=torch.int32)).dtype == torch.float32
    assert norm.running_mean.item() == 257
