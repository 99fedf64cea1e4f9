"""Several recommendation lists of one user made into one.

Source: Hou et al., ICML 2025, arXiv:2502.13581 (ActionPiece), section 3.3.2: a history is written
in several random orders, and the lists found for each are joined, an item's score being the sum of
its gains 1 / log2(1 + rank) over the lists.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from rankloom.retrieval.history_tokens import ActionPieceTokens


def fuse_rankings(
    rankings: Int[Tensor, "lists batch ranks"], num_items: int
) -> Int[Tensor, "batch kept"]:
    """One list of item numbers for each row, best first.

    Args:
        rankings: item numbers, best first; 0 where a list has none.
        num_items: items to keep; of equal scores those of the lower number. 0 where fewer are in
            any list.
    """
    lists, batch, ranks = rankings.shape
    items = rankings.transpose(0, 1).reshape(batch, lists * ranks)
    gains = 1 / torch.arange(2, ranks + 2, device=items.device).log2()
    gains = gains.repeat(lists).expand_as(items)  # [batch, lists * ranks]
    order = items.argsort(dim=1, stable=True)
    items, gains = items.gather(1, order), gains.gather(1, order)
    # Equal items now lie side by side; each run of them is one entry.
    run = (items[:, 1:] != items[:, :-1]).cumsum(1)
    run = torch.cat([torch.zeros_like(items[:, :1]), run], dim=1)
    scores = torch.zeros_like(gains).scatter_add_(1, run, gains)
    numbers = torch.zeros_like(items).scatter_(1, run, items)
    scores = scores.masked_fill(numbers == 0, -torch.inf)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :num_items]
    return numbers.gather(1, best)


def ensemble_rankings(
    recommend: Callable[[], Int[Tensor, "batch ranks"]],
    history: ActionPieceTokens,
    *,
    num_encodings: int = 5,
    seed: int = 0,
) -> Int[Tensor, "batch ranks"]:
    """Recommendations over several random orders of the same histories.

    Args:
        recommend: gives item numbers with a model at evaluation, best first, 0 where there are no
            more; called once for each encoding.
        history: what that model writes its histories with.
        num_encodings: orders to draw.
        seed: of the orders.

    Returns:
        As many items as one list has.

    Raises:
        ValueError: fewer than one encoding.
    """
    if num_encodings < 1:
        raise ValueError(f"num_encodings must be at least 1; got {num_encodings}")
    before, history.generator = history.generator, torch.Generator().manual_seed(seed)
    try:
        rankings = torch.stack([recommend() for _ in range(num_encodings)])
    finally:
        history.generator = before
    return fuse_rankings(rankings, rankings.shape[2])
