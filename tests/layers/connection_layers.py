"""Layers that connections are tested with, and what all their tests do."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

DIM, TOKENS, ROWS = 8, 5, 3


class SmallLayer(nn.Module):
    """A layer that is not linear and gives its last `num_tokens` tokens."""

    def __init__(self, num_tokens: int = TOKENS) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.num_tokens = num_tokens

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x[:, x.shape[1] - self.num_tokens :]))


def small_layers(num_layers: int, *, pyramid: bool = False) -> nn.ModuleList:
    """Layers in float64; of a pyramid each gives one token less."""
    torch.manual_seed(2)
    counts = [TOKENS - number * pyramid for number in range(num_layers)]
    return nn.ModuleList(SmallLayer(count) for count in counts).double()


def small_tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, TOKENS, DIM, generator=generator, dtype=dtype, requires_grad=True)


def drawn(connection: nn.Module, std: float = 0.5) -> nn.Module:
    """The connection in float64, its parameters moved from where they start."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in connection.double().parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return connection


def assert_equal_with_gradients(
    actual: Tensor, expected: Tensor, inputs: Sequence[Tensor], tolerance: float = 1e-9
) -> None:
    """Equal values, and equal gradients of a weighted sum of them."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(actual)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (actual, expected)]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes kept for the backward pass, a tensor that several keep counted once."""
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # so that no address is used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())
