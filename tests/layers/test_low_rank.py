import torch

from rankloom.layers.low_rank import core_generator, low_rank_product


def test_every_row_has_its_own_matrix() -> None:
    torch.manual_seed(0)
    h, left, right = (torch.randn(*shape, requires_grad=True) for shape in ((5, 4), (4, 2), (2, 3)))
    core = torch.randn(5, 2, 2, requires_grad=True)
    out = low_rank_product(h, left, core, right)
    expected = torch.stack([h[row] @ (left @ core[row] @ right) for row in range(5)])
    torch.testing.assert_close(out, expected)
    inputs = (h, left, core, right)
    weight = torch.randn(5, 3)
    actual = torch.autograd.grad((out * weight).sum(), inputs)
    torch.testing.assert_close(actual, torch.autograd.grad((expected * weight).sum(), inputs))


def test_small_numbers() -> None:
    h = torch.tensor([[1.0, 2.0]])
    left, right = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, -1.0]])
    out = low_rank_product(h, left, torch.tensor([[[2.0]]]), right)
    assert out.tolist() == [[14.0, -14.0]]


def test_a_core_starts_at_the_identity() -> None:
    generated = core_generator(3, [4], 2, num_others=3)(torch.zeros(2, 3))
    assert generated.tolist() == [[1, 0, 0, 1, 0, 0, 0]] * 2
