"""Low-rank adapters by which a generator learns from item vectors beside the codes of items.

Source: CapsID, 2026, arXiv:2605.05096, stage 2: while the tokenizer's centres stay fixed, the
    generator is trained together with low-rank routing adapters of rank 8.
This is a reconstruction. The paper was read second-hand, and the form of the adapters is not
    known; adapters inside the tokenizer would change the ids during training and with them the
    trie.
Equation: e' = e + W_up (W_down x), x the item's vector at unit length, e an embedding of the item
    in the history; W_up starts at zero.
Differs from the paper: codes do not change; the adapters correct what the generator reads of an
    item by what its codes lost of its vector.
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.mlp import linear
from rankloom.retrieval.generators.inputs import schema_vectors
from rankloom.retrieval.item_schema import ItemSchema


class LowRankAdapters(Config):
    """How strongly embeddings follow item vectors."""

    rank: int = Field(0, ge=0)
    """Rank of the correction; 0: none. The paper's is 8."""

    def build(self, dim: int, schema: ItemSchema) -> "ItemAdapter | None":
        """The part; None without any.

        Raises:
            ValueError: there is a rank but the schema has no item vectors.
        """
        if self.rank == 0:
            return None
        return ItemAdapter(schema_vectors(schema, "adapters with a rank"), self.rank, dim)


class ItemAdapter(nn.Module):
    """A low-rank map of item vectors, looked up by item number.

    Args:
        vectors: [items + 1, width] vectors; row 0 is padding.
        rank: rank of the map.
        dim: width it gives.
    """

    def __init__(self, vectors: Float[Tensor, "items_plus_one width"], rank: int, dim: int) -> None:
        super().__init__()
        unit = functional.normalize(vectors, dim=1)
        self.register_buffer("vectors", unit, persistent=False)
        self.vectors: Tensor
        self.down = linear(vectors.shape[1], rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, items: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Corrections; zeros at padding."""
        return self.up(self.down(functional.embedding(items, self.vectors)))
