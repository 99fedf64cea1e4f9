"""Search of the best items along a graph of neighbours, where scoring all would take too long."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Scores of some items of every request: [batch, candidates] rows to [batch, candidates]."""


def search_graph(
    score: Score,
    graph: Int[Tensor, "items neighbours"],
    size: int,
    *,
    count: int,
    num_beams: int,
    num_rounds: int,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
    """From random items on, keep the best of those kept and of all their neighbours.

    Args:
        score: scores of some items of every request.
        graph: rows of the neighbours of each item.
        size: requests.
        count: items wanted; at most `num_beams`.
        num_beams: items kept after each round.
        num_rounds: rounds.
        generator: of the first items, on the CPU; None: torch's default one.

    Returns:
        int64 item numbers, from 1 and best first, 0 where fewer were met, and their scores, -inf
        there.

    Raises:
        ValueError: `count` is beyond `num_beams`.
    """
    if not 1 <= count <= num_beams:
        raise ValueError(
            f"count must be from 1 to num_beams; got count={count}, num_beams={num_beams}"
        )
    drawn = torch.randint(len(graph), (size, num_beams), generator=generator)
    kept, scores = _best(score, drawn.to(graph.device), num_beams)
    for _ in range(num_rounds):
        candidates = torch.cat([kept, graph[kept].flatten(1)], dim=1)
        kept, scores = _best(score, candidates, num_beams)
    kept, scores = kept[:, :count], scores[:, :count]
    return torch.where(scores > -torch.inf, kept + 1, 0), scores


def _best(
    score: Score, candidates: Int[Tensor, "batch candidates"], num_beams: int
) -> tuple[Int[Tensor, "batch num_beams"], Float[Tensor, "batch num_beams"]]:
    """The best distinct candidates, best first; repeated ones fill up with -inf."""
    ordered = candidates.sort(dim=1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    scores, places = score(ordered).masked_fill(again, -torch.inf).topk(num_beams, dim=1)
    return ordered.gather(1, places), scores
