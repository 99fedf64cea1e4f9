"""Items whose codes are the same: what becomes of them.

A policy takes what a tokenizer assigned and gives the codes of the published ids. Items of one
group (equal codes) are told apart, or left together: then metrics at item level credit a group by
expectation. New items later get ids beside the published ones in `retrieval.appending`.

A level may hold codes beyond the tokenizer's own: the digits that `dedup` writes after an id's last
code. Having codes of their own, they never make one id the same as a longer one.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rankloom.config import Config
from rankloom.retrieval.protocols import Assignment, Tokenizer
from rankloom.retrieval.tokenizers.uniform_mapping import ResidualTokenizer, uniform_mapping

CodeArray = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ResolvedCodes:
    """Codes of all items after a policy."""

    codes: CodeArray
    """[items, levels] from 0; -1 after an id's end."""
    level_sizes: tuple[int, ...]
    """Codes of each level, digits included."""


@dataclass(frozen=True)
class LastCodeCosts:
    """What each last code would cost each item: squared distances to its residual."""

    residuals: Float[Tensor, "items dim"]
    """What the last level quantises of each item."""
    centres: Float[Tensor, "codes dim"]
    """The last level's codes."""

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, assignment: Assignment, vectors: Float[Tensor, "items width"]
    ) -> "LastCodeCosts | None":
        """The costs of a residual tokenizer whose ids have one length; None of another."""
        centres = tokenizer.code_vectors(len(tokenizer.level_sizes) - 1)
        one_length = bool((assignment.codes >= 0).all())
        if not (isinstance(tokenizer, ResidualTokenizer) and one_length and centres is not None):
            return None
        return cls(tokenizer.last_residuals(vectors).double().cpu(), centres.double().cpu())

    def at(self, rows: IntArray) -> npt.NDArray[np.float64]:
        """[rows, codes] costs of some items."""
        distances = torch.cdist(self.residuals[torch.from_numpy(rows)], self.centres)
        return distances.square().numpy()


NO_RESIDUALS = (
    "{policy} needs a tokenizer that quantises residuals with ids of one length, as rq_kmeans or "
    "rq_vae; use dedup"
)


class LeaveConfig(Config):
    """Groups stay together."""

    kind: Literal["leave"] = "leave"

    def resolve(
        self, assignment: Assignment, tokenizer: Tokenizer, vectors: Float[Tensor, "items width"]
    ) -> ResolvedCodes:
        """The codes as they are."""
        return ResolvedCodes(assignment.codes, tuple(tokenizer.level_sizes))


class DedupConfig(Config):
    """A digit more: the members of a group after the first are numbered at one more level.

    Source: Rajput et al., NeurIPS 2023, arXiv:2305.05065 (TIGER), section 3.1.

    DIFF: TIGER gives the digit 0 to the first member and to every lone item. Here their ids end
    without a digit, as every id ends with a token that says so.
    """

    kind: Literal["dedup"] = "dedup"
    spare_digits: int = Field(0, ge=0)
    """Digits beyond those the catalogue needs, kept for items to come; without any there is no
    level for them unless two items collide."""

    def resolve(
        self, assignment: Assignment, tokenizer: Tokenizer, vectors: Float[Tensor, "items width"]
    ) -> ResolvedCodes:
        """The codes with digits where they are needed."""
        return add_digits(assignment.codes, tuple(tokenizer.level_sizes), self.spare_digits)


class ReassignConfig(Config):
    """Other last codes at least cost.

    Wherever two ids collide, all ids that differ from them in the last code only get last codes
    anew, all different, so that the sum of squared distances between the items' residuals and their
    codes' vectors is least.

    Source: "Faithful Evaluation of Semantic-ID Tokenizers", arXiv:2605.25330 (zero-collision
    re-assignment). Codes before the last never change. Where more ids share their first codes than
    the last level has codes, some cannot be told apart.
    """

    kind: Literal["reassign"] = "reassign"
    overflow: Literal["dedup", "error"] = "dedup"
    """What becomes of items that find no code: a digit as `dedup` gives, or an error."""

    def resolve(
        self, assignment: Assignment, tokenizer: Tokenizer, vectors: Float[Tensor, "items width"]
    ) -> ResolvedCodes:
        """The codes with other last codes where ids collided.

        Raises:
            ValueError: the tokenizer does not quantise residuals with ids of one length, or ids
                overflow and that is an error.
        """
        codes = assignment.codes.copy()
        sizes = tuple(tokenizer.level_sizes)
        collides = group_sizes(codes) > 1
        if collides.any():
            costs = LastCodeCosts.of(tokenizer, assignment, vectors)
            if costs is None:
                raise ValueError(NO_RESIDUALS.format(policy="reassign"))
            buckets = group_numbers(codes[:, :-1])
            for rows in rows_of_groups(buckets, np.isin(buckets, buckets[collides])):
                placed, code = linear_sum_assignment(costs.at(rows))
                codes[rows[placed], -1] = code
                if placed.size < rows.size and self.overflow == "error":
                    raise ValueError(
                        f"{rows.size} ids share all codes but the last, but level {len(sizes)} has "
                        f"{sizes[-1]} codes; use more codes, or overflow = 'dedup'"
                    )
        return add_digits(codes, sizes, 0)


class UniformMappingConfig(Config):
    """Items that collide are quantised again, spread evenly over the last level's codes.

    What still collides after the last round gets a digit as `dedup` gives.

    Source: Zheng et al., ICDE 2024, arXiv:2311.09049 (LC-Rec), section 3.2. For tokenizers with a
    residual quantiser only (RQ-VAE, LETTER).
    """

    kind: Literal["uniform_mapping"] = "uniform_mapping"
    num_rounds: int = Field(20, ge=1)
    """Most rounds of quantising the items that still collide."""

    def resolve(
        self, assignment: Assignment, tokenizer: Tokenizer, vectors: Float[Tensor, "items width"]
    ) -> ResolvedCodes:
        """The codes with other last codes where ids collided.

        Raises:
            ValueError: the tokenizer does not quantise residuals with ids of one length.
        """
        if not isinstance(tokenizer, ResidualTokenizer):
            raise ValueError(NO_RESIDUALS.format(policy="uniform_mapping"))
        codes = uniform_mapping(tokenizer, vectors, assignment.codes, num_rounds=self.num_rounds)
        return add_digits(codes, tuple(tokenizer.level_sizes), 0)


class ExtendConfig(Config):
    """Items that collide take the code of their next level as well.

    So they do as often as they collide and there is a level; what still collides then gets a digit
    as `dedup` gives.
    """

    kind: Literal["extend"] = "extend"
    spare_digits: int = Field(0, ge=0)
    """Digits beyond those the catalogue needs, kept for items to come."""

    def resolve(
        self, assignment: Assignment, tokenizer: Tokenizer, vectors: Float[Tensor, "items width"]
    ) -> ResolvedCodes:
        """The codes with those of deeper levels where ids collided.

        Raises:
            ValueError: the tokenizer's ids all have one length.
        """
        if assignment.alternatives is None:
            raise ValueError(
                "extend needs a tokenizer whose ids differ in length, as capsid; use dedup or "
                "reassign"
            )
        codes = assignment.codes
        for _ in range(assignment.alternatives.shape[1]):
            deeper = next_codes(codes, assignment.alternatives)
            codes = np.where((group_sizes(codes) > 1)[:, None], deeper, codes)
        return add_digits(codes, tuple(tokenizer.level_sizes), self.spare_digits)


CollisionConfig = Annotated[
    LeaveConfig | DedupConfig | ReassignConfig | UniformMappingConfig | ExtendConfig,
    Field(discriminator="kind"),
]
"""What becomes of items whose codes are the same."""


def add_digits(codes: CodeArray, level_sizes: tuple[int, ...], spare_digits: int) -> ResolvedCodes:
    """Codes where each group's members after the first end with a digit of their own.

    The digit stands at the level after the id's last code, behind that level's own codes.
    """
    rank = member_numbers(codes)
    lengths = (codes >= 0).sum(1)
    sizes = np.asarray((*level_sizes, 0))
    wide = np.concatenate([codes, np.full((len(codes), 1), -1, codes.dtype)], axis=1)
    more = np.flatnonzero(rank > 0)
    wide[more, lengths[more]] = sizes[lengths[more]] + rank[more] - 1
    needed = np.zeros_like(sizes)
    np.maximum.at(needed, lengths[more], rank[more])
    # Digits follow ids of every length there is.
    needed[np.unique(lengths)] += spare_digits
    sizes = sizes + needed
    depth = len(sizes) if sizes[-1] else len(sizes) - 1
    return ResolvedCodes(wide[:, :depth], tuple(sizes[:depth].tolist()))


def next_codes(codes: CodeArray, alternatives: CodeArray) -> CodeArray:
    """Every id with one code more, from `alternatives`; ids of full length as they are."""
    width = alternatives.shape[1]
    grown = np.full((len(codes), width), -1, codes.dtype)
    grown[:, : codes.shape[1]] = codes
    place = np.arange(width) == (codes >= 0).sum(1)[:, None]  # [items, levels]
    return np.where(place, alternatives, grown).astype(codes.dtype)


def group_numbers(codes: CodeArray) -> IntArray:
    """[items] the number of each item's group, from 0; equal for equal codes."""
    if codes.size == 0:
        return np.zeros(len(codes), np.int64)
    order = np.lexsort(codes.T)
    ordered = codes[order]
    new = np.ones(len(codes), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers


def group_sizes(codes: CodeArray) -> IntArray:
    """[items] how many items have the same codes, each itself included."""
    numbers = group_numbers(codes)
    return np.bincount(numbers, minlength=1)[numbers]


def member_numbers(codes: CodeArray) -> IntArray:
    """[items] the place of each item in its group, from 0, in the order of the items."""
    numbers = group_numbers(codes)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    members = np.empty(len(codes), np.int64)
    members[order] = place
    return members


def rows_of_groups(numbers: IntArray, wanted: npt.NDArray[np.bool_]) -> list[IntArray]:
    """The rows of each group among the wanted rows, in order."""
    rows = np.flatnonzero(wanted)
    if rows.size == 0:
        return []
    rows = rows[np.argsort(numbers[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(numbers[rows])) + 1)
