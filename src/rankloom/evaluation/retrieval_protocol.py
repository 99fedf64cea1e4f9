"""From a model that retrieves and held-out items to figures: full ranking over the catalogue.

Models that score all items are ranked by their scores; items of equal score share a place. Models
that write semantic ids are decoded over the trie of the catalogue, with beams or exactly, and items
of one id share a place. What is shared is credited by expectation (`retrieval_metrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.evaluation.protocol import Precision
from rankloom.evaluation.retrieval_metrics import (
    IntArray,
    Places,
    id_places,
    per_user,
    popularity_slices,
    score_places,
    summarise_places,
)
from rankloom.evaluation.significance import Interval, PairedTest, bootstrap_interval
from rankloom.retrieval.decoding import beam_search, score_all
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.retrieval.history_rows import evaluation_batches
from rankloom.retrieval.protocols import Generator, ItemScorer
from rankloom.retrieval.recommender import FusedRecommender
from rankloom.retrieval.trie import Trie


class RetrievalEvaluationConfig(Config):
    """How a retrieval model is evaluated, and on which figures."""

    cutoffs: tuple[int, ...] = (5, 10, 20, 50)
    """Ranks that recall, ndcg and mrr are reported at."""
    mode: Literal["beam", "exact"] = "beam"
    """How semantic ids are decoded: beam search, or the likelihood of every id of the catalogue. A
    model that ranks the items of its beams itself (cobra) is always searched with beams."""
    beams: int = Field(50, gt=0)
    """Ids that beam search keeps; a target that is not among them counts as not found at every
    cutoff."""
    renormalise: bool = False
    """Whether each step's probability is spread over the catalogue's continuations alone, which is
    faster and another ranking than the likelihood's."""
    exclude_history: bool = False
    """Whether items of the history that the model is given are left out of the ranking; a target
    among them is then not found."""
    slices: bool = True
    """Whether head, torso, tail and cold targets are reported apart."""
    validation_users: int | None = Field(None, gt=0)
    """Users that the monitored metric is measured on while a model is trained, drawn once by the
    recipe's seed; None: all. The finished model is evaluated on all of them."""
    validation_beams: int | None = Field(None, gt=0)
    """Beams of those evaluations; None: `beams`."""

    @field_validator("cutoffs")
    @classmethod
    def _ascending(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if not cutoffs or cutoffs[0] < 1 or list(cutoffs) != sorted(set(cutoffs)):
            raise ValueError(f"cutoffs must be ranks from 1, ascending; got {list(cutoffs)}")
        return cutoffs


@dataclass(frozen=True)
class RetrievalEvaluation:
    """Figures of one model on one split, and where each user's target stood."""

    metrics: dict[str, float]
    """`recall@10`, `ndcg@10`, `mrr@10` ... over all users, and for models that write semantic ids
    `recall_id@10` (whether the target's id is found, which credits shared ids in full) and, after
    beam search of all items, `invalid_rate`."""
    places: Places
    """Of every user, in the order of the contexts."""
    scenarios: dict[str, dict[str, float | int]] = field(default_factory=dict)
    """Slice of the targets (head, torso, tail, cold) -> its metrics and its users, as `rows`."""

    @property
    def rows(self) -> int:
        """Users evaluated."""
        return self.places.num_users

    def interval(self, metric: str, *, samples: int = 1000, seed: int = 0) -> Interval:
        """Bootstrap interval over users of a metric such as `recall@10`.

        Raises:
            ValueError: no such metric, or no users.
        """
        values = per_user(self.places, metric)
        return bootstrap_interval(_mean, [values], samples=samples, seed=seed)


def compare_places(
    a: Places, b: Places, metric: str, *, samples: int = 1000, seed: int = 0
) -> PairedTest:
    """Paired bootstrap over the users of one split: is the difference of a metric zero?

    The standard error is that of the difference over draws of users, the statistic the difference
    over it. It tells the noise of the users, not that of another training: for that, compare seeds.

    Args:
        a: places of one model.
        b: places of the other, of the same users in the same order.
        metric: such as `recall@10`.
        samples: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: other numbers of users, or no such metric.
    """
    if a.num_users != b.num_users:
        raise ValueError(f"a and b must hold the same users; got {a.num_users} and {b.num_users}")
    difference = per_user(a, metric) - per_user(b, metric)
    found = bootstrap_interval(_mean, [difference], samples=samples, seed=seed)
    error = found.standard_error
    statistic = found.estimate / error if error > 0 else 0.0
    p_value = float(torch.special.erfc(torch.tensor(abs(statistic) / 2**0.5)))
    return PairedTest(found.estimate, found.low, found.high, error, statistic, p_value, found.level)


@torch.no_grad()
def evaluate_retrieval(
    model: nn.Module,
    contexts: Histories,
    targets: IntArray,
    config: RetrievalEvaluationConfig,
    *,
    users: IntArray | None = None,
    trie: Trie | None = None,
    training_counts: IntArray | None = None,
    max_length: int = 50,
    batch_size: int = 256,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> RetrievalEvaluation:
    """Rank the whole catalogue for every context and find the target.

    Args:
        model: an `ItemScorer` or a `Generator`, on `device`; put into evaluation mode here.
        contexts: histories to predict from.
        targets: [contexts] number of the item that came next.
        config: settings.
        users: [contexts] place of each context's user, from 0; None: unknown.
        trie: the catalogue, for generators.
        training_counts: [items] occurrences in training, for slices; None: no slices.
        max_length: newest items of a context that the model is given.
        batch_size: contexts at a time.
        precision: float32, or bf16 autocast.
        device: where the model is.

    Raises:
        ValueError: the model neither scores items nor generates, a generator comes without a trie,
            or there is not one target for each context.
    """
    if len(targets) != contexts.num_users:
        raise ValueError(f"one target for each context: got {len(targets)} of {contexts.num_users}")
    model.eval()
    device = torch.device(device)
    finder = _finder(model, config, None if trie is None else trie.to(device))
    batches, inverse = evaluation_batches(contexts, users, batch_size, max_length)
    order = np.argsort(inverse)
    parts: list[Places] = []
    done = 0
    for batch in batches:
        wanted = torch.from_numpy(targets[order[done : done + batch.size]])
        done += batch.size
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(finder.places(batch.to(device), wanted.to(device)))
    found = Places.join(parts).select(inverse)
    metrics = summarise_places(found, config.cutoffs)
    if isinstance(finder, _BeamPlaces) and not config.exclude_history:
        metrics["invalid_rate"] = finder.invalid_rate
    scenarios: dict[str, dict[str, float | int]] = {}
    if config.slices and training_counts is not None:
        for name, of_item in popularity_slices(training_counts).items():
            chosen = found.select(of_item[targets - 1])
            if chosen.num_users:
                figures = summarise_places(chosen, config.cutoffs)
                scenarios[name] = {"rows": chosen.num_users, **figures}
    return RetrievalEvaluation(metrics, found, scenarios)


@dataclass
class _ScoredPlaces:
    """Places by the scores of all items."""

    model: ItemScorer
    exclude_history: bool

    def places(self, batch: HistoryBatch, targets: Int[Tensor, " batch"]) -> Places:
        scores = self.model.score_items(batch).float()  # [batch, items]
        return score_places(_without_history(scores, batch, self.exclude_history), targets)


@dataclass
class _ExactPlaces:
    """Places by the likelihood of every id; all items of an id have its score."""

    model: Generator
    trie: Trie
    config: RetrievalEvaluationConfig

    def places(self, batch: HistoryBatch, targets: Int[Tensor, " batch"]) -> Places:
        blocked = batch.items if self.config.exclude_history else None
        ids = score_all(
            self.model, batch, self.trie, renormalise=self.config.renormalise, blocked=blocked
        )  # [batch, leaves]
        leaf = self.trie.item_leaf[1:].long()  # [items]
        scores = ids[:, leaf.clamp(min=0)].masked_fill(leaf < 0, -torch.inf)  # [batch, items]
        found = score_places(_without_history(scores, batch, self.config.exclude_history), targets)
        own = ids.gather(1, leaf[targets - 1].clamp(min=0)[:, None])  # [batch, 1]
        rank = ((ids > own).sum(1) + 1).cpu().numpy()
        return Places(found.first, found.size, np.where(found.first > 0, rank, 0))


@dataclass
class _BeamPlaces:
    """Places by the ids that beam search gives."""

    model: Generator
    trie: Trie
    config: RetrievalEvaluationConfig
    wanted: int = 0
    missing: int = 0

    @property
    def invalid_rate(self) -> float:
        """Share of the beams that hold no id of the catalogue, though it has enough."""
        return self.missing / max(1, self.wanted)

    def places(self, batch: HistoryBatch, targets: Int[Tensor, " batch"]) -> Places:
        excluding = self.config.exclude_history
        decoded = beam_search(
            self.model,
            batch,
            self.trie,
            beams=self.config.beams,
            renormalise=self.config.renormalise,
            blocked=batch.items if excluding else None,
        )
        leaves = decoded.leaves  # [batch, beams]
        sizes = self.trie.group_sizes[leaves.clamp(min=0)].long()
        excluded = torch.zeros_like(targets, dtype=torch.bool)
        if excluding:
            sizes = sizes - _held(batch.items, leaves, self.trie)
            excluded = (batch.items == targets[:, None]).any(1)
        else:
            self.wanted += batch.size * min(self.config.beams, self.trie.leaves)
            self.missing += int((leaves[:, : self.trie.leaves] < 0).sum())
        target_leaf = self.trie.item_leaf[targets].long()
        # An item that the trie does not hold has leaf -1, as an unused beam has.
        target_leaf = target_leaf.masked_fill(excluded | (target_leaf < 0), -2)
        return id_places(leaves.cpu().numpy(), sizes.cpu().numpy(), target_leaf.cpu().numpy())


@dataclass
class _FusedPlaces:
    """Places by the scores that a model gives to the items of its beams."""

    model: FusedRecommender
    trie: Trie
    config: RetrievalEvaluationConfig

    def places(self, batch: HistoryBatch, targets: Int[Tensor, " batch"]) -> Places:
        # More than the last cutoff, so that items of equal score are seen beyond it too.
        count = self.config.cutoffs[-1] + self.config.beams
        items, scores = self.model.recommend(
            batch,
            self.trie,
            count=count,
            beams=self.config.beams,
            blocked=batch.items if self.config.exclude_history else None,
        )
        hit = items == targets[:, None]  # [batch, count]
        own = scores.masked_fill(~hit, -torch.inf).amax(1, keepdim=True)
        equal = (scores == own).sum(1)
        first = torch.where(hit.any(1), (scores > own).sum(1) + 1, 0)
        size = torch.where(hit.any(1), equal, 1)
        return Places(first.cpu().numpy(), size.cpu().numpy())


def _finder(
    model: nn.Module, config: RetrievalEvaluationConfig, trie: Trie | None
) -> _ScoredPlaces | _ExactPlaces | _BeamPlaces | _FusedPlaces:
    if isinstance(model, ItemScorer):
        return _ScoredPlaces(model, config.exclude_history)
    if not isinstance(model, Generator):
        raise ValueError(f"{type(model).__name__} neither scores items nor generates their ids")
    if trie is None:
        raise ValueError("a model that writes semantic ids needs the trie of the catalogue")
    if isinstance(model, FusedRecommender):
        return _FusedPlaces(model, trie, config)
    return (_ExactPlaces if config.mode == "exact" else _BeamPlaces)(model, trie, config)


def _without_history(scores: Tensor, batch: HistoryBatch, excluding: bool) -> Tensor:
    """[batch, items] scores, those of the history at minus infinity if asked for."""
    if not excluding:
        return scores
    padded = torch.cat([scores.new_zeros(len(scores), 1), scores], 1)  # column 0 takes padding
    return padded.scatter(1, batch.items, -torch.inf)[:, 1:]


def _held(items: Tensor, leaves: Tensor, trie: Trie) -> Tensor:
    """[batch, beams] different items of the history that each id holds."""
    ordered = items.sort(1).values  # [batch, seq]
    leaf = trie.item_leaf[ordered].long()
    leaf[:, 1:] = leaf[:, 1:].masked_fill(ordered[:, 1:] == ordered[:, :-1], -2)
    leaf = leaf.masked_fill(leaf < 0, -2)  # equal to no beam, whose gaps are -1
    return (leaves[:, :, None] == leaf[:, None, :]).sum(2)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
