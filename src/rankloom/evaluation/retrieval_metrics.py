"""Recall, NDCG and MRR at item level, where several items may share one place.

A target shares its place with the items that have the same semantic id, or the same score. Such a
group of g items that begins at rank p takes the ranks p .. p + g - 1, and the target is on each of
them with probability 1 / g. Every figure is the expectation over that:

    recall@K = |[p, p + g - 1] and [1, K]| / g
    ndcg@K   = 1/g sum_{j = p}^{min(p + g - 1, K)} 1 / log2(j + 1)
    mrr@K    = 1/g sum_{j = p}^{min(p + g - 1, K)} 1 / j

(the credit of "Faithful Evaluation of Semantic-ID Tokenizers", arXiv 2605.25330, for groups of one
id). `recall_id@K` asks only whether the target's id is among the first K ids: what is reported
where collisions are not looked at, too high by as much as ids are shared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.evaluation.metrics import FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

COLD_BELOW = 5
"""An item is cold when it occurs less often than this in training."""


@dataclass(frozen=True)
class Places:
    """Where the target of each user stands."""

    first: IntArray
    """[users] first rank of the target's group, from 1; 0: the target was not among what the model
    gave."""
    size: IntArray
    """[users] items that share the place, the target included."""
    id_rank: IntArray | None = None
    """[users] rank of the target's semantic id among ids, from 1; 0: not given. None: no ids."""

    def __post_init__(self) -> None:
        """Check that the places are possible.

        Raises:
            ValueError: lengths differ, a rank is negative, or a group is empty.
        """
        others = () if self.id_rank is None else (self.id_rank,)
        if any(part.shape != self.first.shape for part in (self.size, *others)):
            raise ValueError("places must hold one rank and one size for each user")
        if self.first.size and (self.first.min() < 0 or self.size.min() < 1):
            raise ValueError("ranks go from 1 (0: not given) and groups hold at least one item")

    @property
    def num_users(self) -> int:
        """Users."""
        return self.first.size

    @classmethod
    def join(cls, parts: Sequence["Places"]) -> "Places":
        """The places of several groups of users, one after another."""
        none = np.empty(0, np.int64)
        ranks = [part.id_rank for part in parts if part.id_rank is not None]
        return cls(
            np.concatenate([none, *(part.first for part in parts)]),
            np.concatenate([none, *(part.size for part in parts)]),
            np.concatenate([none, *ranks]) if ranks else None,
        )

    def select(self, users: npt.NDArray[np.generic]) -> "Places":
        """The places of some users, by mask or by number from 0."""
        ids = None if self.id_rank is None else self.id_rank[users]
        return Places(self.first[users], self.size[users], ids)


def score_places(scores: Float[Tensor, "users items"], targets: Int[Tensor, " users"]) -> Places:
    """Places of targets among items that all have scores; equal scores share one place.

    Args:
        scores: higher is better, column i of item number i + 1. Items at minus infinity do not take
            part; a target among them is not found.
        targets: item numbers.

    Raises:
        ValueError: a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError("scores must be numbers; some are NaN")
    own = scores.gather(1, targets[:, None] - 1)  # [users, 1]
    greater = (scores > own).sum(1)
    equal = (scores == own).sum(1)
    found = own[:, 0] > -torch.inf
    first, size = torch.where(found, greater + 1, 0), torch.where(found, equal, 1)
    return Places(first.cpu().numpy(), size.cpu().numpy())


def id_places(ids: IntArray, sizes: IntArray, target_ids: IntArray) -> Places:
    """Places of targets among semantic ids in the order in which a model gave them.

    Args:
        ids: [users, given] numbers of distinct ids, best first; -1 where there are fewer.
        sizes: [users, given] items that share each id; 0 takes no rank.
        target_ids: [users] number of the target's id.
    """
    hit = (ids == target_ids[:, None]) & (sizes > 0)  # [users, given]
    place = hit.argmax(1)
    found = hit.any(1)
    rows = np.arange(len(ids))
    before = np.where(ids >= 0, sizes, 0).cumsum(1)  # items up to and with each id
    size = sizes[rows, place]
    first = before[rows, place] - size + 1
    taken = ((ids >= 0) & (sizes > 0)).cumsum(1)[rows, place]  # ids up to and with the target's
    return Places(
        np.where(found, first, 0).astype(np.int64),
        np.where(found, size, 1).astype(np.int64),
        np.where(found, taken, 0).astype(np.int64),
    )


def expected_recall(places: Places, cutoff: int) -> FloatArray:
    """[users] probability that the target is among the first `cutoff` items."""
    return _expected(places, cutoff, np.ones)


def expected_ndcg(places: Places, cutoff: int) -> FloatArray:
    """[users] expected 1 / log2(rank + 1) within the first `cutoff` items; one target a user."""
    return _expected(places, cutoff, lambda count: 1 / np.log2(np.arange(count) + 2))


def expected_reciprocal_rank(places: Places, cutoff: int) -> FloatArray:
    """[users] expected 1 / rank within the first `cutoff` items."""
    return _expected(places, cutoff, lambda count: 1 / (np.arange(count) + 1))


def id_recall(places: Places, cutoff: int) -> FloatArray:
    """[users] 1 where the target's id is among the first `cutoff` ids.

    Raises:
        ValueError: the places are not of ids.
    """
    if places.id_rank is None:
        raise ValueError("recall_id needs a model that gives semantic ids; this one scores items")
    return ((places.id_rank >= 1) & (places.id_rank <= cutoff)).astype(np.float64)


PER_USER: Mapping[str, Callable[[Places, int], FloatArray]] = {
    "recall": expected_recall,
    "ndcg": expected_ndcg,
    "mrr": expected_reciprocal_rank,
    "recall_id": id_recall,
}
"""Metrics by the part of their name before the @."""


def per_user(places: Places, metric: str) -> FloatArray:
    """[users] a metric by its name, such as `ndcg@10`, of each user: what paired tests compare.

    Raises:
        ValueError: no such metric, or the cutoff is no number above 0.
    """
    name, _, cutoff = metric.partition("@")
    if name not in PER_USER or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(PER_USER)}, each @ a rank")
    return PER_USER[name](places, int(cutoff))


def summarise_places(places: Places, cutoffs: Sequence[int]) -> dict[str, float]:
    """Means over users of all metrics at all cutoffs; NaN without users."""
    names = [name for name in PER_USER if name != "recall_id" or places.id_rank is not None]
    return {
        f"{name}@{cutoff}": float(PER_USER[name](places, cutoff).mean())
        if places.num_users
        else float("nan")
        for name in names
        for cutoff in cutoffs
    }


def popularity_slices(counts: IntArray) -> dict[str, BoolArray]:
    """Items by how often they occur in training.

    head, torso and tail are thirds of the interactions: from the most frequent item down (of equal
    ones the smaller number first), an item is of the head while the items before it make less than
    a third of all training interactions, of the torso while they make less than two thirds, and of
    the tail else; one that never occurs is of the tail. cold are those below `COLD_BELOW`
    occurrences, whichever third they are of.

    Args:
        counts: [items] occurrences in training.

    Returns:
        Name -> [items] mask.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    third = np.full(counts.shape, 2)
    third[order] = np.minimum(3 * before // max(1, int(counts.sum())), 2)
    third[counts == 0] = 2
    masks = {name: third == number for number, name in enumerate(("head", "torso", "tail"))}
    return {**masks, "cold": counts < COLD_BELOW}


def _expected(places: Places, cutoff: int, gains: Callable[[int], FloatArray]) -> FloatArray:
    """Mean over a group's ranks of the gain of each rank, 0 beyond the cutoff."""
    if cutoff < 1:
        raise ValueError(f"cutoff must be at least 1; got {cutoff}")
    total = np.concatenate([[0.0], np.cumsum(gains(cutoff))])  # gain of the ranks 1 .. j
    before = np.minimum(np.maximum(places.first - 1, 0), cutoff)
    last = np.minimum(before + places.size, cutoff)
    return np.where(places.first > 0, (total[last] - total[before]) / places.size, 0.0)
