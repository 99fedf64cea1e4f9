import numpy as np
import pytest
import torch
from torch import Tensor

from rankloom.config import parse_config
from rankloom.retrieval.collisions import DedupConfig, ReassignConfig, group_sizes
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.history_tokens import ActionPieceTokens
from rankloom.retrieval.merges import with_merges
from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.action_piece import (
    ActionPiece,
    ActionPieceConfig,
    AttributesConfig,
)
from rankloom.retrieval.tokenizers.opq import OPQConfig
from rankloom.retrieval.tokenizers.state import load_state

CONFIG = ActionPieceConfig(features=OPQConfig(num_digits=2, num_codes=3), num_buckets=16)


def fitted(items: TokenizerItems, config: ActionPieceConfig = CONFIG, seed: int = 0) -> ActionPiece:
    tokenizer = config.build(items.vectors.shape[1])
    tokenizer.fit(items, torch.Generator().manual_seed(seed))
    return tokenizer


def vectors_of(num_items: int) -> Tensor:
    return torch.randn(num_items, 6, generator=torch.Generator().manual_seed(1))


def test_features_are_digits_and_a_bucket_that_tells_items_apart() -> None:
    vectors = vectors_of(60)
    vectors[7] = vectors[3]
    tokenizer = fitted(TokenizerItems(vectors))
    assert isinstance(tokenizer, FittedTokenizer)
    assert tokenizer.level_sizes == (3, 3, 16)
    codes = tokenizer.assign(vectors).codes
    assert (codes[:, :2] == tokenizer.features.assign(vectors).codes).all()
    assert group_sizes(codes[:, :2]).max() > 3
    assert group_sizes(codes).max() == 1
    assert len(np.unique(codes[:, 2])) > 10


def test_more_equal_items_than_buckets_are_left_to_the_policies() -> None:
    vectors = torch.ones(10, 6)
    tokenizer = fitted(TokenizerItems(vectors), CONFIG.model_copy(update={"num_buckets": 4}))
    assignment = tokenizer.assign(vectors)
    assert np.bincount(assignment.codes[:, 2]).min() == 2
    resolved = DedupConfig().resolve(assignment, tokenizer, vectors)
    assert group_sizes(resolved.codes).max() == 1


def test_new_items_get_digits_and_a_free_bucket_where_one_is_asked_for() -> None:
    vectors = vectors_of(40)
    tokenizer = fitted(TokenizerItems(vectors[:30]))
    codes = tokenizer.assign(vectors).codes
    assert (codes[:30] == tokenizer.assign(vectors[:30]).codes).all()
    assert (codes[30:] == tokenizer.assign(vectors[30:]).codes).all()
    assert (codes[30:, 2] >= 0).all()
    again = torch.cat([vectors[:1] + 1e-6 * step for step in range(9)])
    resolved = ReassignConfig(overflow="error").resolve(tokenizer.assign(again), tokenizer, again)
    assert group_sizes(resolved.codes).max() == 1


def test_attributes_as_features() -> None:
    values = torch.tensor([[1, 0, 2], [1, 5, 2], [0, 5, 1]])
    items = TokenizerItems(torch.randn(3, 6), values, ("brand", "colour", "category"))
    config = ActionPieceConfig(features=AttributesConfig(names=("category", "brand")))
    tokenizer = fitted(items, config)
    codes = tokenizer.assign(items.vectors).codes
    assert codes[:, :2].tolist() == [[2, 1], [2, 1], [1, 0]]
    assert codes[0, 2] != codes[1, 2]
    assert tokenizer.level_sizes == (3, 2, 64)
    assert tokenizer.code_vectors(0) is None
    assert tokenizer.assign(torch.randn(1, 6)).codes[0, :2].tolist() == [0, 0]
    with pytest.raises(ValueError, match="action_piece needs items with the side fields price"):
        fitted(items, ActionPieceConfig(features=AttributesConfig(names=("price",))))


def test_from_items_to_tokens_of_histories() -> None:
    vectors = vectors_of(40)
    rng = np.random.default_rng(0)
    histories = Histories.from_lists([rng.integers(1, 41, 8) for _ in range(30)], 40)
    config = parse_config(
        ActionPieceConfig,
        {
            "features": {"kind": "opq", "num_digits": 2, "num_codes": 3},
            "merges": {"vocabulary_size": 80},
        },
        "test",
    )
    tokenizer = fitted(TokenizerItems(vectors), config)
    ids = SemanticIds(tokenizer.assign(vectors).codes, tokenizer.level_sizes)
    ids = with_merges(ids, tokenizer.learn_merges(ids, histories))
    assert ids.vocabulary_size == 80
    history = ActionPieceTokens(ids)
    items = torch.from_numpy(histories.items).view(30, 8)
    encoded = history.encode(items, torch.Generator().manual_seed(0))
    lengths = (encoded.tokens > 0).sum(1)
    assert lengths.max() < 24  # of 8 items of 3 codes
    assert encoded.tokens.max() > 72
    # Taken apart, the tokens are the codes of the items, in some order within each.
    first = 80 - len(ids.merges)
    for row in range(30):
        parts: list[int] = []
        for token in encoded.tokens[row].tolist():
            stack = [token] if token else []
            while stack:
                head = stack.pop()
                if head >= first:
                    stack += ids.merges[head - first].tolist()
                else:
                    parts.append(head)
        wanted = (ids.codes + ids.level_offsets)[histories.of(row) - 1]
        assert sorted(parts) == sorted(wanted.flatten().tolist())
    # Every item keeps one id, and no two items the same.
    assert len({tuple(tokens) for tokens in ids.tokens.tolist()}) == 40


def test_state_and_seed() -> None:
    vectors = vectors_of(30)
    tokenizer, again = fitted(TokenizerItems(vectors)), CONFIG.build(6)
    load_state(again, tokenizer.state_dict())
    codes = tokenizer.assign(vectors).codes
    assert (again.assign(vectors).codes == codes).all()
    assert (fitted(TokenizerItems(vectors)).assign(vectors).codes == codes).all()
    assert (fitted(TokenizerItems(vectors), seed=1).assign(vectors).codes != codes).any()


def test_one_item_and_none() -> None:
    one = fitted(TokenizerItems(torch.ones(1, 6)))
    assert one.assign(torch.ones(1, 6)).codes.shape == (1, 3)
    assert one.assign(torch.ones(0, 6)).codes.shape == (0, 3)
    with pytest.raises(ValueError, match="action_piece needs at least one item; got none"):
        fitted(TokenizerItems(torch.ones(0, 6)))
