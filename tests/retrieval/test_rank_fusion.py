import math

import numpy as np
import pytest
import torch

from rankloom.retrieval.history_tokens import ActionPieceTokens
from rankloom.retrieval.rank_fusion import ensemble_rankings, fuse_rankings
from rankloom.retrieval.semantic_ids import SemanticIds


def test_gains_add_up_by_hand() -> None:
    rankings = torch.tensor([[[7, 3, 5]], [[3, 9, 0]], [[5, 3, 9]]])
    # 3: 1 + 2 / log2(3) = 2.26; 5: 1 + 1 / 2; 9: 1 / log2(3) + 1 / 2 = 1.13; 7: 1.
    assert fuse_rankings(rankings, 5).tolist() == [[3, 5, 9, 7, 0]]
    assert fuse_rankings(rankings, 2).tolist() == [[3, 5]]


def test_fusion_equals_a_dictionary_of_scores() -> None:
    rng = np.random.default_rng(0)
    rankings = np.stack(
        [[rng.permutation(12)[:6] for _ in range(9)] for _ in range(4)]
    )  # 0 among them
    found = fuse_rankings(torch.from_numpy(rankings), 8)
    for row in range(9):
        scores: dict[int, float] = {}
        for ranking in rankings[:, row]:
            for rank, item in enumerate(ranking.tolist(), 1):
                if item:
                    scores[item] = scores.get(item, 0) + 1 / math.log2(rank + 1)
        wanted = sorted(scores, key=lambda item: (-round(scores[item], 5), item))[:8]
        assert [item for item in found[row].tolist() if item] == wanted


def test_one_list_stays_as_it_is() -> None:
    assert fuse_rankings(torch.tensor([[[4, 2, 8, 0]]]), 4).tolist() == [[4, 2, 8, 0]]


def test_each_encoding_is_drawn_anew_and_seeded() -> None:
    ids = SemanticIds(np.zeros((1, 5), np.int32), (1,) * 5)
    history = ActionPieceTokens(ids).eval()
    drawn: list[list[int]] = []

    def recommend() -> torch.Tensor:
        drawn.append(history.tokens(torch.tensor([[1, 1]]))[0].tolist())
        return torch.tensor([[1]])

    for _ in range(2):
        assert ensemble_rankings(recommend, history, num_encodings=4, seed=3).tolist() == [[1]]
    assert drawn[:4] == drawn[4:]
    assert len({tuple(tokens) for tokens in drawn}) == 4
    assert history.generator is None
    with pytest.raises(ValueError, match="num_encodings must be at least 1; got 0"):
        ensemble_rankings(recommend, history, num_encodings=0)
