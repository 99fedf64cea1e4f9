import pytest
import torch
from torch import Tensor

from rankloom.layers.capsule_routing import (
    FullPoses,
    HeldVotes,
    LowRankPoses,
    ScaledIdentityPoses,
    Votes,
    route,
    squash,
    squash_factors,
)

BATCH, CODES, DIM, RANK = 5, 7, 4, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled_identity() -> tuple[ScaledIdentityPoses, Tensor]:
    poses = ScaledIdentityPoses(DIM, CODES, 0.5, learned=True).double()
    with torch.no_grad():
        poses.biases.copy_(random(CODES, DIM, seed=1))
    return poses, 0.5 * torch.eye(DIM, dtype=torch.float64).expand(CODES, DIM, DIM)


def low_rank() -> tuple[LowRankPoses, Tensor]:
    poses = LowRankPoses(DIM, CODES, 0.5, RANK).double()
    with torch.no_grad():
        poses.biases.copy_(random(CODES, DIM, seed=1))
        poses.up.copy_(random(CODES, RANK, DIM, seed=2))
        poses.down.copy_(random(CODES, RANK, DIM, seed=3))
    matrices = [
        0.5 * torch.eye(DIM, dtype=torch.float64) + up.T @ down
        for up, down in zip(poses.up.detach(), poses.down.detach(), strict=True)
    ]
    return poses, torch.stack(matrices)


def full() -> tuple[FullPoses, Tensor]:
    poses = FullPoses(DIM, CODES, 0.5).double()
    with torch.no_grad():
        poses.biases.copy_(random(CODES, DIM, seed=1))
        poses.matrices.copy_(random(CODES, DIM, DIM, seed=2))
    return poses, poses.matrices.detach()


def votes_one_by_one(matrices: Tensor, biases: Tensor, r: Tensor) -> Tensor:
    rows = [[W @ x + b for W, b in zip(matrices, biases, strict=True)] for x in r]
    return torch.stack([torch.stack(row) for row in rows])


FORMS = [scaled_identity, low_rank, full]


def test_squash_by_hand() -> None:
    # Length 5: 25 / 25.5 of the direction (0.6, 0.8).
    result = squash(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(result, torch.tensor([[0.6, 0.8]]) * 25 / 25.5)


def test_squash_stays_below_one_and_is_safe_at_zero() -> None:
    z = torch.cat([torch.zeros(1, 3), torch.tensor([[1e-20, 0, 0], [30.0, -20, 4]])])
    z.requires_grad_()
    lengths = squash(z).norm(dim=1)
    assert bool((lengths < 1).all())
    assert lengths[0] == 0
    assert lengths[2] > 0.99
    squash(z).sum().backward()
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("form", FORMS)
def test_votes_equal_those_that_are_held(form) -> None:  # type: ignore[no-untyped-def]
    poses, matrices = form()
    r, targets = random(BATCH, DIM, seed=4), random(CODES, DIM, seed=5)
    weights, output = random(BATCH, CODES, seed=6), random(BATCH, DIM, seed=7)
    votes: Votes = poses(r)
    u = votes_one_by_one(matrices, poses.biases.detach(), r)
    assert votes.zeros().shape == (BATCH, CODES)
    torch.testing.assert_close(votes.mix(weights), torch.einsum("bk,bkd->bd", weights, u))
    torch.testing.assert_close(votes.agreement(output), torch.einsum("bkd,bd->bk", u, output))
    torch.testing.assert_close(votes.products(targets), torch.einsum("bkd,kd->bk", u, targets))
    torch.testing.assert_close(votes.squared_lengths(), u.square().sum(2))
    torch.testing.assert_close(votes.capsule_sums(weights), torch.einsum("bk,bkd->kd", weights, u))
    torch.testing.assert_close(squash_factors(votes).unsqueeze(2) * u, squash(u))


@pytest.mark.parametrize("form", FORMS)
def test_routing_equals_the_loop_over_rows_forward_and_backward(form) -> None:  # type: ignore[no-untyped-def]
    poses, matrices = form()
    r = random(BATCH, DIM, seed=4).requires_grad_()
    kappa = torch.tensor(3.0, dtype=torch.float64)
    weights, output = route(poses(r), kappa, 3)
    (output * random(BATCH, DIM, seed=8)).sum().backward()
    gradient = r.grad
    slow = r.detach().clone().requires_grad_()
    outputs = []
    for row, x in enumerate(slow):
        u = [W @ x + b for W, b in zip(matrices, poses.biases.detach(), strict=True)]
        a = torch.zeros(CODES, dtype=torch.float64)
        for _ in range(3):
            c = torch.softmax(3 * a, 0)
            v = sum((c[k] * u[k] for k in range(CODES)), torch.zeros(DIM, dtype=torch.float64))
            o = squash(v)
            a = a + torch.stack([u[k] @ o for k in range(CODES)])
        c = torch.softmax(3 * a, 0)
        torch.testing.assert_close(weights[row], c)
        outputs.append(squash(sum(c[k] * u[k] for k in range(CODES))))  # type: ignore[arg-type]
    torch.testing.assert_close(output, torch.stack(outputs))
    (torch.stack(outputs) * random(BATCH, DIM, seed=8)).sum().backward()
    torch.testing.assert_close(gradient, slow.grad)


def test_weights_sum_to_one_and_depend_on_the_row_after_one_update() -> None:
    poses, _ = scaled_identity()
    votes = poses(random(BATCH, DIM, seed=4))
    kappa = torch.tensor(20.0, dtype=torch.float64)
    one, _ = route(votes, kappa, 1)
    torch.testing.assert_close(one.sum(1), torch.ones(BATCH, dtype=torch.float64))
    assert len(set(one.argmax(1).tolist())) > 1
    none, _ = route(votes, kappa, 0)  # one round as published
    torch.testing.assert_close(none, torch.full_like(none, 1 / CODES))


def test_more_rounds_decide_more_firmly() -> None:
    poses, _ = scaled_identity()
    votes = poses(random(BATCH, DIM, seed=4))
    kappa = torch.tensor(1.0, dtype=torch.float64)
    largest = [route(votes, kappa, updates)[0].amax(1).mean().item() for updates in (1, 2, 3, 5)]
    assert largest == sorted(largest)
    assert largest[-1] > largest[0] + 0.1


def test_new_full_and_low_rank_poses_vote_as_scaled_identity_ones() -> None:
    r = random(BATCH, DIM, seed=4).float()
    plain = ScaledIdentityPoses(DIM, CODES, 0.5)(r)
    for poses in (LowRankPoses(DIM, CODES, 0.5, RANK), FullPoses(DIM, CODES, 0.5)):
        torch.testing.assert_close(poses(r).agreement(r), plain.agreement(r))


def test_a_fixed_scale_is_no_parameter_and_a_learned_one_stays_below_one() -> None:
    fixed = ScaledIdentityPoses(DIM, CODES, 0.5)
    assert [name for name, _ in fixed.named_parameters()] == ["biases"]
    learned = ScaledIdentityPoses(DIM, CODES, 0.5, learned=True)
    with torch.no_grad():
        learned.scale_logit.fill_(50.0)
    r = torch.ones(1, DIM)
    assert bool((learned(r).mix(torch.ones(1, CODES) / CODES) <= 1).all())


def test_routing_of_zero_votes_is_even_and_has_gradients() -> None:
    votes = HeldVotes(torch.zeros(2, 3, DIM, requires_grad=True))
    weights, output = route(votes, torch.tensor(20.0), 3)
    torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3))
    (output.sum() + squash_factors(votes).sum()).backward()
    assert votes.votes.grad is not None
    assert bool(torch.isfinite(votes.votes.grad).all())
