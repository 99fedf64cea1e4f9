"""Popularity: every item scored by how often it was taken, whatever the history.

The plainest baseline: a model that is not above it has learned nothing of the user.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema


class PopularityConfig(Config):
    """Nothing to set."""


class Popularity(nn.Module):
    """Counts of the training part."""

    def __init__(self, config: PopularityConfig, schema: ItemSchema) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(schema.num_items))
        self.counts: Tensor
        """[items] float32: how often each item was taken."""

    def fit(self, histories: Histories) -> None:
        """Count the items of the training part."""
        self.counts.copy_(torch.from_numpy(histories.counts()))

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """The counts, the same for every history."""
        return self.counts.expand(batch.size, -1)
