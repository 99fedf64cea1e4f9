"""How good semantic ids are, before any generator is trained on them.

Source: the names of the measures are those of arXiv:2605.05096 (CapsID), which does not define
them; the definitions here are ours and stand with each function. Pure functions of codes, where -1
stands after an id's end.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rankloom.config import Config
from rankloom.retrieval.collisions import CodeArray, group_numbers, group_sizes
from rankloom.retrieval.protocols import Assignment
from rankloom.retrieval.semantic_ids import SemanticIds


class TokenizerDiagnostics(Config):
    """What the ids of a catalogue are like; shares lie in [0, 1]."""

    num_items: int
    """Items of the catalogue."""
    num_ids: int
    """Distinct ids."""
    collision_share: float
    """Share of items whose whole id another item has too."""
    assigned_collision_share: float | None = None
    """The same of the codes that the tokenizer gave, before collisions were settled."""
    largest_groups: tuple[int, ...]
    """Items of the largest groups of equal ids, largest first; empty where no two collide."""
    utilisation: float
    """Share of all (level, code) pairs that some id uses."""
    utilisation_by_level: tuple[float, ...]
    """The same by level."""
    gini: float
    """Gini index of the counts of all (level, code) pairs: 0 all used alike, 1 one has all."""
    entropy_by_level: tuple[float, ...]
    """Entropy of the codes of each level, in bits."""
    intra_code_cosine: tuple[float | None, ...]
    """For each level l the mean cosine of all pairs of items with the same first l codes; None
    where no two items have."""
    reconstruction_error: float | None
    """Squared distance between vectors and what their codes say, over the vectors' variance; None
    where the tokenizer does not reconstruct, or there is no variance."""
    mean_length: float
    """Mean codes of an id."""
    length_shares: tuple[float, ...]
    """Share of items whose id has 1, 2 ... codes."""
    mean_tokens: float
    """Mean tokens of an id after merges, its end token not counted."""
    stop_shares: dict[str, float] = Field(default_factory=dict)
    """Share of items by the reason why their id ended, where the tokenizer says so."""


def diagnose(
    ids: SemanticIds,
    vectors: Float[Tensor, "items width"],
    assignment: Assignment | None = None,
    *,
    num_groups: int = 5,
) -> TokenizerDiagnostics:
    """All measures of a catalogue's ids.

    Args:
        ids: the published ids, collisions resolved.
        vectors: what they were made from, for the cosines.
        assignment: what the tokenizer assigned, for its collisions, reconstruction and stop
            reasons; it may hold other codes than the ids.
        num_groups: how many of the largest groups are listed.
    """
    codes = ids.codes
    sizes = np.sort(np.bincount(group_numbers(codes), minlength=1))[::-1]
    counts = code_counts(codes, ids.level_sizes)
    used = [int((level > 0).sum()) for level in counts]
    lengths = np.bincount(ids.lengths, minlength=codes.shape[1] + 1)[1:]
    items = max(ids.num_items, 1)
    stops = {} if assignment is None else stop_shares(assignment)
    return TokenizerDiagnostics(
        num_items=ids.num_items,
        num_ids=int((sizes > 0).sum()),
        collision_share=collision_share(codes),
        assigned_collision_share=None if assignment is None else collision_share(assignment.codes),
        largest_groups=tuple(sizes[sizes > 1][:num_groups].tolist()),
        utilisation=sum(used) / max(sum(ids.level_sizes), 1),
        utilisation_by_level=tuple(
            count / size for count, size in zip(used, ids.level_sizes, strict=True)
        ),
        gini=gini(np.concatenate(counts)),
        entropy_by_level=tuple(entropy_bits(level) for level in counts),
        intra_code_cosine=intra_code_cosine(codes, vectors),
        reconstruction_error=None if assignment is None else reconstruction_error(assignment),
        mean_length=float(ids.lengths.sum()) / items,
        length_shares=tuple((lengths / items).tolist()),
        # END is one token of each.
        mean_tokens=float((ids.tokens > 0).sum()) / items - (ids.num_items > 0),
        stop_shares=stops,
    )


def collision_share(codes: CodeArray) -> float:
    """Share of items whose whole id another item has too; 0 without items."""
    return float((group_sizes(codes) > 1).mean()) if len(codes) else 0.0


def code_counts(codes: CodeArray, level_sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """For each level [codes]: how many ids have each code there."""
    return [
        np.bincount(column[column >= 0], minlength=size)
        for column, size in zip(codes.T, level_sizes, strict=True)
    ]


def gini(counts: npt.NDArray[np.integer]) -> float:
    """Gini index of counts: the mean difference of two of them over twice their mean.

    0 when all are alike, 1 - 1 / n when one of n has everything; 0 for no counts at all.
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    rank = np.arange(1, counts.size + 1)
    return float((2 * rank - counts.size - 1) @ ordered / (counts.size * total))


def entropy_bits(counts: npt.NDArray[np.integer]) -> float:
    """Entropy of the distribution that counts make, in bits; 0 for no counts at all."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    # Not minus zero where one code has everything.
    return float(abs(-(shares * np.log2(shares)).sum()))


def intra_code_cosine(
    codes: CodeArray, vectors: Float[Tensor, "items width"]
) -> tuple[float | None, ...]:
    """For each level l the mean cosine over all pairs of items with the same first l codes.

    Exact without a loop over pairs: n unit vectors with sum s have pairs of cosines that add up to
    (||s||^2 - n) / 2. Ids that ended before level l have no l codes and do not count; a vector of
    zeros has cosine 0 with every other.
    """
    matrix = vectors.detach().double().cpu().numpy()
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    units = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    own = (units**2).sum(1)  # one, or zero for a vector of zeros
    means: list[float | None] = []
    for level in range(codes.shape[1]):
        rows = np.flatnonzero(codes[:, level] >= 0)
        numbers = group_numbers(codes[rows, : level + 1])
        order = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        sizes = np.diff(starts, append=rows.size)
        pairs = (sizes * (sizes - 1)).sum() / 2
        if pairs == 0:
            means.append(None)
            continue
        sums = np.add.reduceat(units[rows[order]], starts)  # [groups, width]
        means.append(float(((sums**2).sum() - own[rows].sum()) / 2 / pairs))
    return tuple(means)


def reconstruction_error(assignment: Assignment) -> float | None:
    """Squared distance of targets and reconstructions over that of targets and their mean.

    1 is what the mean vector alone would reach. None without reconstructions, and where all targets
    are the same and missed.
    """
    if assignment.reconstruction is None or assignment.target is None:
        return None
    target = assignment.target.detach().double()
    missed = (target - assignment.reconstruction.detach().double()).square().sum()
    spread = (target - target.mean(0)).square().sum() if len(target) else missed
    if missed == 0:
        return 0.0
    return float(missed / spread) if spread > 0 else None


def stop_shares(assignment: Assignment) -> dict[str, float]:
    """Share of items by the reason why their id ended; empty where the tokenizer has none."""
    if assignment.stopped_by is None:
        return {}
    counts = np.bincount(assignment.stopped_by, minlength=len(assignment.stop_reasons))
    shares = counts / max(assignment.stopped_by.size, 1)
    return dict(zip(assignment.stop_reasons, shares.tolist(), strict=True))


class CodeExample(Config):
    """Some items that share their first codes."""

    codes: tuple[int, ...]
    """The codes they share."""
    num_items: int
    """How many items do."""
    titles: tuple[str, ...]
    """Titles of some, those nearest to the mean of all first."""


def code_examples(
    ids: SemanticIds,
    titles: Sequence[str],
    vectors: Float[Tensor, "items width"],
    *,
    num_codes: int = 5,
    num_titles: int = 5,
    depth: int = 1,
) -> tuple[CodeExample, ...]:
    """The codes that most items share, each with the items nearest to its middle.

    Args:
        ids: ids of the catalogue.
        titles: a title for each item, in their order.
        vectors: item vectors; nearness is cosine with the mean of the unit vectors.
        num_codes: codes to show, most items first.
        num_titles: items to show of each.
        depth: how many codes items share.

    Raises:
        ValueError: there are more or fewer titles than items, or no such level.
    """
    if len(titles) != ids.num_items:
        raise ValueError(f"one title for each item; got {len(titles)} for {ids.num_items} items")
    if not 1 <= depth <= len(ids.level_sizes):
        raise ValueError(f"depth must be 1 to {len(ids.level_sizes)} levels; got {depth}")
    rows = np.flatnonzero(ids.codes[:, depth - 1] >= 0)
    numbers = group_numbers(ids.codes[rows, :depth])
    units = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1).numpy()
    counts = np.bincount(numbers)
    examples = []
    for number in np.argsort(-counts, kind="stable")[:num_codes]:
        members = rows[numbers == number]
        nearness = units[members] @ units[members].mean(0)
        shown = members[np.argsort(-nearness, kind="stable")[:num_titles]]
        examples.append(
            CodeExample(
                codes=tuple(ids.codes[members[0], :depth].tolist()),
                num_items=int(counts[number]),
                titles=tuple(titles[item] for item in shown),
            )
        )
    return tuple(examples)
