"""What generators read beside the tokens of items: a window of the history, and the user."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import SemanticIds

INIT_STD = 0.02
"""Standard deviation of new embeddings."""


def newest_items(batch: HistoryBatch, max_length: int) -> HistoryBatch:
    """The newest `max_length` items of every row, with their targets; older ones are dropped."""
    width = batch.items.shape[1]
    if width <= max_length:
        return batch
    dropped = (batch.lengths - max_length).clamp(min=0).unsqueeze(1)  # [batch, 1]
    columns = torch.arange(max_length, device=batch.items.device) + dropped
    targets = None if batch.targets is None else batch.targets.gather(1, columns)
    return replace(batch, items=batch.items.gather(1, columns), targets=targets)


def schema_ids(schema: ItemSchema, model: str) -> SemanticIds:
    """The catalogue's semantic ids.

    Raises:
        ValueError: the schema has none.
    """
    if schema.ids is None:
        raise ValueError(f"{model} needs the items' semantic ids; make them with rankloom tokenize")
    return schema.ids


def schema_vectors(schema: ItemSchema, model: str) -> Float[Tensor, "items_plus_one width"]:
    """Item vectors to be looked up by item number: row 0, of padding, is zeros.

    Raises:
        ValueError: the schema has none.
    """
    if schema.vectors is None:
        raise ValueError(f"{model} needs the items' vectors, and the schema has none")
    return torch.cat([schema.vectors.new_zeros(1, schema.vectors.shape[1]), schema.vectors])


class UserEmbedding(nn.Module):
    """A vector for each user, many users to one vector; zeros for users that are not known.

    User u has vector (u - 1) mod `num_user_tokens`: numbers are dense, so all vectors are shared by
    equally many.

    Args:
        num_user_tokens: vectors.
        dim: width of a vector.
        init_std: standard deviation of new vectors.
    """

    def __init__(self, num_user_tokens: int, dim: int, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.table = nn.Embedding(num_user_tokens, dim)
        nn.init.normal_(self.table.weight, std=init_std)

    def forward(self, users: Int[Tensor, " batch"] | None, size: int) -> Float[Tensor, "batch dim"]:
        """The vectors of `size` users; None: none is known."""
        weight = self.table.weight
        if users is None:
            return weight.new_zeros(size, weight.shape[1])
        vectors = self.table((users - 1) % weight.shape[0])
        return vectors * (users > 0).unsqueeze(1)
