import pytest
import torch

from rankloom.layers.quantizers import (
    Codebook,
    ResidualQuantizer,
    SinkhornCodes,
    rotation_trick,
    straight_through,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantizer(codebooks: list[list[list[float]]], **settings: object) -> ResidualQuantizer:
    tables = [torch.tensor(table) for table in codebooks]
    made = ResidualQuantizer([len(table) for table in tables], tables[0].shape[1], **settings)  # type: ignore[arg-type]
    for book, table in zip(made.codebooks, tables, strict=True):
        book.vectors.data.copy_(table)
    return made


def test_straight_through() -> None:
    vectors, codes = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    out = straight_through(vectors, codes)
    torch.testing.assert_close(out, codes)
    weights = torch.randn(4, 3)
    (out * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)
    assert codes.grad is None


def test_the_rotation_trick_by_hand() -> None:
    # (2, 0) is turned by a right angle and scaled by a half to (0, 1); what pulls the output along
    # (a, b) pulls the input along the same direction turned back: half of (b, -a).
    vectors = torch.tensor([[2.0, 0.0]], requires_grad=True)
    out = rotation_trick(vectors, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 1.0]]))
    (out * torch.tensor([[3.0, 5.0]])).sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[2.5, -1.5]]))


def test_the_rotation_is_one() -> None:
    vectors = torch.randn(5, generator=seeded())
    code = torch.randn(5, generator=seeded(1))
    matrix = torch.autograd.functional.jacobian(
        lambda x: rotation_trick(x[None], code[None])[0], vectors
    )
    scale = code.norm() / vectors.norm()
    torch.testing.assert_close(matrix @ vectors, code)
    torch.testing.assert_close(matrix.T @ matrix, scale.square() * torch.eye(5))
    torch.testing.assert_close(torch.linalg.det(matrix), scale**5)


@pytest.mark.parametrize(
    ("vector", "code"),
    [([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([2.0, 0.0], [-1.0, 0.0])],
)
def test_where_no_rotation_is_defined(vector: list[float], code: list[float]) -> None:
    vectors = torch.tensor([vector], requires_grad=True)
    out = rotation_trick(vectors, torch.tensor([code]))
    torch.testing.assert_close(out, torch.tensor([code]))
    (out * torch.tensor([[3.0, 5.0]])).sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[3.0, 5.0]]))


def test_two_levels_by_hand() -> None:
    made = quantizer([[[0.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    vectors = torch.tensor([[5.5, 0.0], [0.0, 3.0]], requires_grad=True)
    out = made(vectors)
    # Residuals: (5.5, 0) and (0, 3), then (1.5, 0) and (0, 3), then (.5, 0) and (0, 1).
    assert out.codes.tolist() == [[1, 0], [0, 1]]
    torch.testing.assert_close(out.vectors, torch.tensor([[5.0, 0.0], [0.0, 2.0]]))
    expected = torch.tensor([(1.5**2 + 9) / 4, (0.5**2 + 1) / 4])
    torch.testing.assert_close(out.codebook_losses, expected)
    torch.testing.assert_close(out.commitment_losses, expected)


def test_what_each_loss_moves() -> None:
    made = quantizer([[[0.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    vectors = torch.tensor([[5.5, 0.0]], requires_grad=True)
    made(vectors).codebook_losses.sum().backward()
    assert vectors.grad is None
    first, second = made.codebooks
    # d/de of (5.5 - e)^2 / 2 at 4, and of (1.5 - e)^2 / 2 at 1.
    assert first.vectors.grad is not None
    assert second.vectors.grad is not None
    assert first.vectors.grad.tolist() == [[0, 0], [-1.5, 0]]
    assert second.vectors.grad.tolist() == [[-0.5, 0], [0, 0]]
    made.zero_grad()
    made(vectors).commitment_losses.sum().backward()
    assert first.vectors.grad is None
    # Both levels' commitment reaches the input: 1.5 + .5.
    assert vectors.grad is not None
    assert vectors.grad.tolist() == [[2, 0]]


def test_the_gradient_of_the_output_arrives_once() -> None:
    made = ResidualQuantizer((4, 4, 4), 3)
    vectors = torch.randn(5, 3, generator=seeded(), requires_grad=True)
    made(vectors).vectors.sum().backward()
    torch.testing.assert_close(vectors.grad, torch.ones(5, 3))
    assert all(book.vectors.grad is None for book in made.codebooks)


def test_nearest_agrees_with_forward() -> None:
    made = ResidualQuantizer((8, 8), 4)
    vectors = torch.randn(50, 4, generator=seeded())
    made.start(vectors, seeded())
    path, out = made.nearest(vectors), made(vectors)
    assert torch.equal(path.codes, out.codes)
    torch.testing.assert_close(path.code_sum, out.vectors)
    first = made.codebooks[0].vectors[path.codes[:, 0]]
    torch.testing.assert_close(path.last_residuals, vectors - first)
    assert ((path.margins >= 0) & (path.margins <= 1)).all()


def test_k_means_start_leaves_less_over_at_every_level() -> None:
    vectors = torch.randn(400, 4, generator=seeded())
    made = ResidualQuantizer((16, 16, 16), 4)
    made.start(vectors, seeded())
    losses = made(vectors).codebook_losses.detach()
    assert losses[0] < 0.5
    assert losses[1] < 0.5 * losses[0]
    assert losses[2] < 0.5 * losses[1]


def test_sinkhorn_at_the_last_level_only() -> None:
    vectors = 0.1 * torch.randn(32, 2, generator=seeded()) + 1
    tables = [[[1.0, 1.0], [9.0, 9.0]], [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]]]
    made = quantizer(tables, last_choice=SinkhornCodes(0.003, 200))
    codes = made(vectors).codes
    assert codes[:, 0].tolist() == [0] * 32
    assert torch.bincount(codes[:, 1], minlength=4).min() >= 4
    assert made.nearest(vectors).codes[:, 1].tolist() == [0] * 32


def test_idle_codes_are_revived_in_training_only() -> None:
    made = quantizer([[[0.0, 0.0], [50.0, 50.0]]], revive_after=3)
    vectors = torch.randn(6, 2, generator=seeded())
    made.eval()
    for _ in range(5):
        made(vectors)
    made.train()
    book = made.codebooks[0]
    for _ in range(3):
        assert book.vectors[1].tolist() == [50, 50]
        made(vectors)
    made(vectors)
    assert book.vectors[1].tolist() in vectors.tolist()
    assert book.vectors[0].tolist() == [0, 0]


def test_no_revival() -> None:
    book = Codebook(2, 2, revive_after=0)
    before = book.vectors.detach().clone()
    book.idle_steps.fill_(10**12)
    book.revive(torch.ones(3, 2))
    assert torch.equal(book.vectors, before)
