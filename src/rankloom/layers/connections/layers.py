"""What a connection is given: layers that turn tokens into updates."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "batch tokens dim"]

LastTokens = Float[Tensor, "batch last_tokens out_dim"]
"""What a stack gives: as many tokens as its last layer, perhaps of another width."""

Layer = Callable[..., Tensor]
"""Called with tokens [batch, tokens, dim]; gives the update [batch, last_tokens, dim]."""


@runtime_checkable
class Connection(Protocol):
    """The loop over a stack's layers."""

    out_dim: int
    """Width of the stack's output."""

    def __call__(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output; as many layers as the connection was built for."""


def last_tokens(
    x: Float[Tensor, "batch tokens *rest"], update: Float[Tensor, "batch last_tokens _"]
) -> Float[Tensor, "batch last_tokens *rest"]:
    """The last tokens of `x`, as many as a layer's update has."""
    num_tokens = update.shape[1]
    return x if x.shape[1] == num_tokens else x[:, x.shape[1] - num_tokens :]


class SkippedLayers(nn.Module):
    """Several sublayers as one layer: each adds to what the next one reads.

    With sublayers f and g the update is f(x) + g(x + f(x)), so that x plus the update is what two
    sublayers with an identity connection give.
    """

    def __init__(self, sublayers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(sublayers)

    def forward(self, x: Tokens, *context: object, **inputs: object) -> LastTokens:
        """The update; `context` goes to every sublayer, `inputs` to the first."""
        first, *others = self.sublayers
        update = first(x, *context, **inputs)
        x = last_tokens(x, update)
        for sublayer in others:
            step = sublayer(x + update, *context)
            x = last_tokens(x, step)
            update = last_tokens(update, step) + step
        return update


class ConnectedStack(nn.Module):
    """Layers and the connection between them.

    Args:
        layers: the sublayers of every layer.
        connection: the loop over them, built for as many layers, or sublayers, as there are.
        per_sublayer: whether the connection stands around every sublayer instead of every layer;
            sublayers within a layer then have no skip of their own.
        norm: normalises the output.
    """

    out_dim: int
    """Width of the output."""

    def __init__(
        self,
        layers: Sequence[Sequence[nn.Module]],
        connection: Connection,
        *,
        per_sublayer: bool,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.out_dim = connection.out_dim
        units: list[nn.Module]
        if per_sublayer:
            units = [sublayer for layer in layers for sublayer in layer]
        else:
            units = [SkippedLayers(layer) for layer in layers]
        self.layers = nn.ModuleList(units)
        self.connection = connection
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tokens, *context: object) -> LastTokens:
        """The stack's output; `context` goes to every layer as it is."""

        def bind(layer: nn.Module) -> Layer:
            return lambda tokens, **inputs: layer(tokens, *context, **inputs)

        return self.norm(self.connection(x, [bind(layer) for layer in self.layers]))
