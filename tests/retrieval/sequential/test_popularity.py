"""Popularity, counted by hand."""

import torch

from rankloom.retrieval.histories import Histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import ItemScorer
from rankloom.retrieval.sequential.popularity import Popularity, PopularityConfig
from tests.retrieval.sequential.sequential_models import contexts


def test_scores_are_counts_whatever_the_history() -> None:
    model = Popularity(PopularityConfig(), ItemSchema(4))
    assert isinstance(model, ItemScorer)
    model.fit(Histories.from_lists([[1, 2], [2, 2, 4], []], num_items=4))
    assert model.score_items(contexts([1], [3, 2], [])).tolist() == [[1, 3, 0, 1]] * 3
    other = Popularity(PopularityConfig(), ItemSchema(4))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score_items(contexts([])), model.score_items(contexts([])))
