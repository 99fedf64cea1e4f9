"""DeRes between the layers of a stack of your own, which knows nothing else of rankloom."""

import torch
from torch import Tensor, nn

from rankloom.ranking.deres_parts import DeResConnection


class Stack(nn.Module):
    """Layers of your own. A layer gives its update: what used to be added to its input."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
            )
            for _ in range(num_layers)
        )
        self.connection = DeResConnection(width={"kind": "full"}).build(dim, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """The stack's output [batch, tokens, dim]."""
        return self.connection(x, list(self.layers))  # in place of: for f in layers: x = x + f(x)


def main(steps: int = 50) -> list[float]:
    """Learn the largest number of every row and return the losses."""
    torch.manual_seed(0)
    lift, stack, out = nn.Linear(1, 64), Stack(dim=64, num_layers=8), nn.Linear(64, 1)
    parameters = [*lift.parameters(), *stack.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    losses = []
    for _ in range(steps):
        numbers = torch.rand(32, 10, 1)  # [batch, tokens, 1]
        guess = out(stack(lift(numbers)).amax(1))
        loss = (guess - numbers.amax(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
