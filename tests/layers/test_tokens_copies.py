import torch

from rankloom.layers.tokens.copies import copy_tokens


def test_a_copy_is_laid_out_as_tokens_of_its_own() -> None:
    x = torch.randn(3, 5, 2, requires_grad=True)
    copy = copy_tokens(x, 1, 4)
    assert torch.equal(copy, x[:, 1:4])
    assert copy.is_contiguous()
    assert not x[:, 1:4].is_contiguous()
    copy.sum().backward()
    assert torch.equal(x.grad[0, :, 0], torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))
