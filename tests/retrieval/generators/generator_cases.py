"""Small catalogues and batches for the tests of generators."""

import numpy as np
import torch
from torch import Tensor

from rankloom.retrieval.histories import HistoryBatch, pad_histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import PADDING, SemanticIds


def variable_ids(num_items: int = 12, *, size: int = 4, levels: int = 3) -> SemanticIds:
    """Ids of one to `levels` codes, some items sharing one."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, size, (num_items, levels)).astype(np.int32)
    lengths = 1 + np.arange(num_items) % levels
    codes[np.arange(levels) >= lengths[:, None]] = -1
    return SemanticIds(codes, (size,) * levels)


def fixed_ids(num_items: int = 12, *, size: int = 4, levels: int = 2) -> SemanticIds:
    """Distinct ids of `levels` codes."""
    number = np.arange(num_items)
    digits = [number // size**level % size for level in range(levels)]
    return SemanticIds(np.stack(digits, axis=1).astype(np.int32), (size,) * levels)


def small_schema(ids: SemanticIds, width: int = 6) -> ItemSchema:
    """A catalogue with ids and vectors."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(ids.num_items, width, generator=generator)
    return ItemSchema(ids.num_items, num_users=5, ids=ids, vectors=vectors)


def histories(*rows: list[int], users: list[int] | None = None, width: int = 50) -> HistoryBatch:
    """A batch without targets."""
    numbers = None if users is None else torch.tensor(users)
    return HistoryBatch(pad_histories(rows, width), users=numbers)


def whole_sequences(*rows: list[int]) -> HistoryBatch:
    """Rows whose targets are the items that follow: `users` rows."""
    return HistoryBatch(
        pad_histories([row[:-1] for row in rows], 50),
        pad_histories([row[1:] for row in rows], 50),
    )


def prefixes(*rows: list[int]) -> HistoryBatch:
    """Every prefix of every sequence with the item after it: `prefixes` rows."""
    pairs = [(row[:end], row[end]) for row in rows for end in range(1, len(row))]
    items = pad_histories([history for history, _ in pairs], 50)
    targets = torch.zeros_like(items)
    for place, (history, target) in enumerate(pairs):
        targets[place, len(history) - 1] = target
    return HistoryBatch(items, targets)


def all_tokens(ids: SemanticIds, size: int) -> Tensor:
    """Tokens of every id for each of `size` rows: [size, items, width]."""
    return ids.token_table()[1:].expand(size, -1, -1)


def stepwise_log_likelihood(generator: object, batch: HistoryBatch, tokens: Tensor) -> Tensor:
    """Log-likelihood of given ids [batch, choices, width] by `start` and `advance`.

    Beams are reversed at every other step, so that parents are followed in earnest.
    """
    hidden, state = generator.start(batch)
    size, count, width = tokens.shape
    total = torch.zeros(size, count)
    order = torch.arange(count)
    parents = torch.zeros(count, dtype=torch.int64)
    for step in range(width):
        if step:
            fed = tokens[:, order, step - 1]
            hidden, state = generator.advance(state, fed, parents.expand(size, -1))
        log_p = generator.logits(hidden).float().log_softmax(-1).expand(size, count, -1)
        now = tokens[:, order, step]
        gain = log_p.gather(2, now.unsqueeze(2)).squeeze(2)
        total[:, order] += torch.where(now == PADDING, 0.0, gain)
        # The first step has one beam that all continue; later each continues another's place.
        parents = torch.arange(count).flip(0) if step else torch.zeros(count, dtype=torch.int64)
        order = order.flip(0)
    return total
