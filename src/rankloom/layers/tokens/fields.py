"""Fields to tokens: one per field, one per group of fields, or cut from a network over all."""

from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.token_mlp import PerTokenLinear


class PerFieldTokens(nn.Module):
    """A linear layer of its own for every field; its bias is the field's own token.

    Args:
        num_fields: fields.
        in_dim: width of a field's vector.
        dim: width of a token.
    """

    num_tokens: int
    """Tokens."""

    def __init__(self, num_fields: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.num_tokens = num_fields
        self.project = PerTokenLinear(num_fields, in_dim, dim)

    def forward(
        self, vectors: Float[Tensor, "batch fields in_dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        """The tokens."""
        return self.project(vectors)
