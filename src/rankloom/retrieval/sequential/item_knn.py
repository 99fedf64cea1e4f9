"""Item-KNN: items that the users of a history's items also took.

Source: Sarwar et al., WWW 2001; the form with shrinkage as in Dacrema et al., RecSys 2019,
    arXiv:1907.06902.
Equations, with X[u,i] = 1 where user u took item i:
    s(i,j)   = (X^T X)[i,j] / (sqrt(n_i n_j) + shrinkage) for i != j,  n_i the users of item i
    score(j) = sum over history items i, the a-th newest, of recency^a s(i,j),  a from 0
    where s(i,j) counts only for the `num_neighbours` most similar j of each i.
Differs from the papers: neighbours are kept for each item of the history, not for each candidate,
    so that a history is scored by looking up its own items.
An empty history scores every item 0; so does one whose items nobody took together with others.
"""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema

BLOCK_ITEMS = 2048
"""Items whose similarities to all others are made at once."""


class ItemKNNConfig(Config):
    """How similar two items are, and how much of a history counts."""

    num_neighbours: int = Field(100, gt=0)
    """Most similar items that are kept of each item."""
    shrinkage: float = Field(10.0, ge=0)
    """Added to the denominator: lowers the similarity of items that few users took."""
    recency: float = Field(1.0, gt=0, le=1)
    """Weight of an item against the next newer one; 1: all count alike."""


class ItemKNN(nn.Module):
    """Neighbours of every item, by cosine of their users."""

    def __init__(self, config: ItemKNNConfig, schema: ItemSchema) -> None:
        super().__init__()
        self.shrinkage, self.recency = config.shrinkage, config.recency
        kept = min(config.num_neighbours, schema.num_items)
        rows = schema.num_items + 1
        self.register_buffer("neighbours", torch.zeros(rows, kept, dtype=torch.int64))
        self.neighbours: Tensor
        """[items + 1, neighbours] item numbers, most similar first; 0 where there are no more."""
        self.register_buffer("similarity", torch.zeros(rows, kept))
        self.similarity: Tensor
        """[items + 1, neighbours] their similarity; 0 where there are no more."""

    def fit(self, histories: Histories) -> None:
        """Find every item's neighbours in the training part; equally similar ones by number."""
        taken = _users_by_items(histories)
        items_by_users = taken.T.tocsr()
        users = np.diff(items_by_users.indptr).astype(np.float64)  # [items + 1]
        neighbours = torch.zeros(self.neighbours.shape, dtype=torch.int64)
        similarities = torch.zeros(self.similarity.shape)
        for start in range(0, len(users), BLOCK_ITEMS):
            together = (items_by_users[start : start + BLOCK_ITEMS] @ taken).tocoo()
            item, other = together.row + start, together.col
            different = item != other
            item, other, counts = item[different], other[different], together.data[different]
            similarity = counts / (np.sqrt(users[item] * users[other]) + self.shrinkage)
            order = np.lexsort((other, -similarity, item))
            item, other, similarity = item[order], other[order], similarity[order]
            place = np.arange(len(item)) - np.searchsorted(item, item)
            kept = place < self.neighbours.shape[1]
            where = torch.from_numpy(item[kept].astype(np.int64)), torch.from_numpy(place[kept])
            neighbours[where] = torch.from_numpy(other[kept].astype(np.int64))
            similarities[where] = torch.from_numpy(similarity[kept].astype(np.float32))
        self.neighbours.copy_(neighbours)  # on whatever device they are
        self.similarity.copy_(similarities)

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Summed similarities to the items of each history."""
        items = batch.items
        places = torch.arange(items.shape[1], device=items.device)
        age = (batch.lengths[:, None] - 1 - places).clamp(min=0)  # [batch, seq]
        weight = self.recency ** age.float()
        added = self.similarity[items] * weight[:, :, None]  # [batch, seq, neighbours]
        scores = added.new_zeros(len(items), self.neighbours.shape[0])
        scores.scatter_add_(1, self.neighbours[items].flatten(1), added.flatten(1))
        return scores[:, 1:]


def _users_by_items(histories: Histories) -> sparse.csr_array:
    """[users, items + 1] 1 where a user took an item, also if more than once."""
    users = np.repeat(np.arange(histories.num_users), histories.lengths)
    ones: npt.NDArray[np.float64] = np.ones(len(users))
    shape = (histories.num_users, histories.num_items + 1)
    taken = sparse.coo_array((ones, (users, histories.items)), shape=shape).tocsr()
    taken.data[:] = 1
    return taken
