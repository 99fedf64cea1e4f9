import torch

from rankloom.layers.capsule_routing import HeldVotes, squash
from rankloom.retrieval.tokenizers.capsid_parts import (
    FromCentres,
    FromPoses,
    HardWinner,
    ItemScale,
    LearnedProjection,
    MeanScale,
    NoScale,
    OutputCentres,
    PrincipalProjection,
    ResidualCentres,
    SoftUpdate,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_principal_projection_keeps_the_strongest_axes() -> None:
    vectors = random(200, 5) * torch.tensor([0.1, 3.0, 0.2, 1.0, 0.1]) + 7
    project = PrincipalProjection().build(5, 2)
    project.start(vectors)
    z = project(vectors)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    covariance = z.T @ z / len(z)
    assert covariance[0, 0] > 8 * covariance[1, 1] * 0.8
    torch.testing.assert_close(covariance[0, 1], torch.tensor(0.0), atol=1e-4, rtol=0)
    assert not any(parameter.requires_grad for parameter in project.parameters())


def test_whitening_gives_every_axis_variance_one() -> None:
    vectors = random(300, 4) * torch.tensor([5.0, 0.1, 1.0, 2.0])
    project = PrincipalProjection(whiten=True).build(4, 3)
    project.start(vectors)
    z = project(vectors)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(3), atol=1e-3, rtol=0)


def test_axes_that_the_data_lack_are_zero() -> None:
    vectors = random(3, 6)  # two axes about their mean
    for config in (PrincipalProjection(whiten=True), LearnedProjection()):
        project = config.build(6, 4)
        project.start(vectors)
        z = project(vectors)
        assert bool(torch.isfinite(z).all())
        torch.testing.assert_close(z[:, 2:], torch.zeros(3, 2), atol=1e-5, rtol=0)
        assert bool((z[:, :2].abs().sum(0) > 0.1).all())
    assert all(parameter.requires_grad for parameter in project.parameters())


def test_scaling() -> None:
    residual, sigma = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), torch.tensor(0.5)
    scaled = residual / ItemScale(length=2.0).scale(residual, sigma)
    torch.testing.assert_close(scaled[:2], torch.tensor([[1.2, 1.6], [1.2, 1.6]]))
    assert scaled[2].tolist() == [0, 0]
    torch.testing.assert_close(ItemScale(length=2.0).sigma(sigma), torch.tensor(0.25))
    torch.testing.assert_close(MeanScale().scale(residual, MeanScale().sigma(sigma)), sigma)
    assert NoScale().scale(residual, NoScale().sigma(sigma)).item() == 1


def test_reconstruction_and_what_centres_follow() -> None:
    u, weights = random(3, 4, 2), torch.softmax(random(3, 4, seed=1), 1)
    centres, inputs = random(4, 2, seed=2), random(3, 2, seed=3)
    votes = HeldVotes(u)
    torch.testing.assert_close(
        FromCentres().reconstruct(votes, weights, centres), weights @ centres
    )
    outputs = squash(u)
    torch.testing.assert_close(
        FromPoses().reconstruct(votes, weights, centres),
        torch.einsum("bk,bkd->bd", weights, outputs),
    )
    torch.testing.assert_close(
        OutputCentres().sums(votes, inputs, weights),
        torch.einsum("bk,bkd->kd", weights, outputs),
    )
    torch.testing.assert_close(
        ResidualCentres().sums(votes, inputs, weights),
        torch.einsum("bk,bd->kd", weights, inputs),
    )


def test_the_hard_winner_takes_all_and_passes_gradients() -> None:
    weights = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    assert SoftUpdate().shares(weights) is weights
    shares = HardWinner().shares(weights)
    torch.testing.assert_close(shares, torch.tensor([[0.0, 1.0, 0.0]]))
    (shares * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    torch.testing.assert_close(weights.grad, torch.tensor([[1.0, 2.0, 3.0]]))
