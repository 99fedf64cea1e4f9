"""The best items of any retrieval model, for serving: from histories to item numbers and scores."""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.retrieval.decoding import Decoded, beam_search, exact_search, top_items
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.protocols import Generator, ItemScorer
from rankloom.retrieval.trie import Trie


@runtime_checkable
class FusedRecommender(Protocol):
    """A generator that ranks the items below its beams by more than the likelihood of their ids."""

    def recommend(
        self,
        batch: HistoryBatch,
        trie: Trie,
        *,
        count: int,
        beams: int,
        blocked: Int[Tensor, "batch blocked"] | None = None,
    ) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
        """The best items of each history, 0 where there are fewer, and their scores."""


@torch.no_grad()
def best_items(
    model: nn.Module,
    batch: HistoryBatch,
    count: int,
    *,
    trie: Trie | None = None,
    mode: Literal["beam", "exact"] = "beam",
    beams: int = 50,
    renormalise: bool = False,
    blocked: Int[Tensor, "batch blocked"] | None = None,
) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
    """The best items of the catalogue after each history, best first.

    Args:
        model: an `ItemScorer` or a `Generator`, in evaluation mode.
        batch: histories, on the model's device; they may be empty.
        count: items wanted.
        trie: the catalogue, for generators.
        mode: how semantic ids are decoded; models that fuse beams always search with beams.
        beams: ids that beam search keeps; at least `count` are kept.
        renormalise: spread each step's probability over the catalogue's continuations alone.
        blocked: numbers of items that a row must not get; 0 for none.

    Returns:
        Item numbers, 0 where there are fewer than wanted, and their scores, -inf there.

    Raises:
        ValueError: the model is neither, or a generator comes without a trie.
    """
    if isinstance(model, ItemScorer):
        return _best_scored(model.score_items(batch).float(), count, blocked)
    if not isinstance(model, Generator):
        raise ValueError(f"{type(model).__name__} neither scores items nor generates their ids")
    if trie is None:
        raise ValueError("a model that writes semantic ids needs the trie of the catalogue")
    width = max(beams, count)
    if isinstance(model, FusedRecommender):
        return model.recommend(batch, trie, count=count, beams=width, blocked=blocked)
    search = exact_search if mode == "exact" else beam_search
    decoded: Decoded = search(
        model, batch, trie, beams=width, renormalise=renormalise, blocked=blocked
    )
    return top_items(decoded, trie, count, blocked)


def _best_scored(
    scores: Float[Tensor, "batch items"], count: int, blocked: Int[Tensor, "batch blocked"] | None
) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
    if blocked is not None:
        padded = torch.cat([scores.new_zeros(len(scores), 1), scores], 1)  # column 0 takes padding
        scores = padded.scatter(1, blocked, -torch.inf)[:, 1:]
    # Stable: of equal scores the smaller number first.
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]  # [batch, count]
    best = scores.gather(1, order)
    items = (order + 1).masked_fill(best == -torch.inf, 0)
    short = count - items.shape[1]
    if short > 0:
        items = torch.nn.functional.pad(items, (0, short))
        best = torch.nn.functional.pad(best, (0, short), value=-torch.inf)
    return items, best
