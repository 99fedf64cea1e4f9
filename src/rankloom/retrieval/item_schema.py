"""What a retrieval model knows of its data when it is built."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from rankloom.retrieval.semantic_ids import SemanticIds


@dataclass(frozen=True)
class ItemSchema:
    """The catalogue as a retrieval model sees it."""

    num_items: int
    """Items; their numbers go from 1 to `num_items`."""
    num_users: int = 0
    """Users known by number, from 1 to `num_users`."""
    ids: SemanticIds | None = None
    """The items' semantic ids, for generators."""
    vectors: Float[Tensor, "items width"] | None = None
    """float32 item vectors, for models that read them."""
    code_vectors: Float[Tensor, "tokens dim"] | None = None
    """float32 vector of each token of the ids (special tokens: zeros), where the tokenizer has
    them."""
    attributes: Int[Tensor, "items fields"] | None = None
    """int64 side fields such as category and brand, as numbers from 1; 0: missing."""
