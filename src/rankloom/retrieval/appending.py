"""Ids for new items beside published ones, which never change.

Levels keep their sizes, so tokens keep their meaning and a trained generator stays usable: a new id
is made of codes and digits that exist already. `spare_digits` of the `dedup` and `extend` policies
keeps some free.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rankloom.retrieval.collisions import (
    CodeArray,
    LastCodeCosts,
    group_numbers,
    next_codes,
    rows_of_groups,
)
from rankloom.retrieval.protocols import Assignment, Tokenizer
from rankloom.retrieval.semantic_ids import SemanticIds

Rows = npt.NDArray[np.bool_]


def append_items(
    published: SemanticIds,
    assignment: Assignment,
    tokenizer: Tokenizer,
    vectors: Float[Tensor, "items width"],
    *,
    unique: bool = True,
    items_hash: str = "",
) -> SemanticIds:
    """The published ids with those of new items after them.

    A new item keeps the codes it was assigned where no earlier item has them. Otherwise, in this
    order: it takes its next codes, where the tokenizer assigned deeper ones; the free last code of
    least cost, where the tokenizer quantises residuals; a free digit.

    Args:
        published: ids of the catalogue so far.
        assignment: what the same tokenizer assigned to the new items.
        tokenizer: that tokenizer.
        vectors: the new items' vectors.
        unique: whether new ids must differ from all others; otherwise codes are taken as assigned,
            as under the policy `leave`.
        items_hash: hash of the longer catalogue's item ids.

    Returns:
        Ids of the same levels and merges.

    Raises:
        ValueError: the tokenizer has other levels than the ids, or no free code or digit is left
            for an item.
    """
    own = tuple(tokenizer.level_sizes)
    sizes = published.level_sizes
    if len(own) > len(sizes) or any(a > b for a, b in zip(own, sizes, strict=False)):
        raise ValueError(
            f"the published ids have levels of {sizes} codes, the tokenizer of {own}: they were "
            "made by another tokenizer; tokenize the whole catalogue again"
        )
    new = _widen(assignment.codes, len(sizes))
    codes = np.concatenate([published.codes, new])
    if unique:
        _make_unique(codes, published.num_items, assignment, tokenizer, vectors, sizes)
    return replace(published, codes=codes, items_hash=items_hash)


def _make_unique(
    codes: CodeArray,
    first_new: int,
    assignment: Assignment,
    tokenizer: Tokenizer,
    vectors: Float[Tensor, "items width"],
    sizes: tuple[int, ...],
) -> None:
    """Change the rows from `first_new` on until each differs from all rows before it."""
    if assignment.alternatives is not None:
        alternatives = _widen(assignment.alternatives, len(sizes))
        for _ in range(assignment.alternatives.shape[1]):
            taken = _taken(codes, first_new)
            deeper = next_codes(codes[first_new:], alternatives)
            # An id at its full length has no deeper code and stays as it is.
            codes[first_new:] = np.where(taken[first_new:, None], deeper, codes[first_new:])
    costs = LastCodeCosts.of(tokenizer, assignment, vectors)
    if costs is not None:
        _free_last_codes(codes, first_new, costs, len(tokenizer.level_sizes) - 1)
    _free_digits(codes, _taken(codes, first_new), tuple(tokenizer.level_sizes), sizes)


def _free_last_codes(codes: CodeArray, first_new: int, costs: LastCodeCosts, last: int) -> None:
    """Give the taken ids of each prefix the free last codes of least cost, as far as there are."""
    taken = _taken(codes, first_new)
    num_codes = len(costs.centres)
    buckets = group_numbers(codes[:, :last])
    for rows in rows_of_groups(buckets, np.isin(buckets, buckets[taken])):
        movable = rows[taken[rows]]
        # An id with a digit keeps its last code from no other.
        plain = (codes[rows, last + 1 :] < 0).all(1)
        free = np.setdiff1d(np.arange(num_codes), codes[rows[plain], last])
        placed, code = linear_sum_assignment(costs.at(movable - first_new)[:, free])
        codes[movable[placed], last] = free[code]


def _free_digits(
    codes: CodeArray, taken: Rows, own_sizes: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """Give the taken ids free digits after their last code.

    Raises:
        ValueError: there are too few.
    """
    own, ends = np.zeros((2, len(sizes) + 1), np.int64)
    own[: len(own_sizes)] = own_sizes
    ends[: len(sizes)] = sizes
    last = (codes >= 0).sum(1) - 1
    last_codes = codes[np.arange(len(codes)), last]
    has_digit = last_codes >= own[last]
    plain = codes.copy()
    plain[np.flatnonzero(has_digit), last[has_digit]] = -1
    numbers = group_numbers(plain)
    for rows in rows_of_groups(numbers, np.isin(numbers, numbers[taken])):
        wanting = rows[taken[rows]]
        level = int(last[wanting[0]]) + 1
        free = np.setdiff1d(np.arange(own[level], ends[level]), last_codes[rows[has_digit[rows]]])
        if free.size < wanting.size:
            raise ValueError(
                f"no id is left for {wanting.size - free.size} new items with the codes "
                f"{codes[wanting[0], :level].tolist()}: codes and digits are taken; tokenize the "
                "whole catalogue again, with spare_digits"
            )
        codes[wanting, level] = free[: wanting.size]


def _taken(codes: CodeArray, first_new: int) -> Rows:
    """[items] True at new items whose codes an earlier item has."""
    numbers = group_numbers(codes)
    first = np.full(numbers.max(initial=0) + 1, len(codes), np.int64)
    np.minimum.at(first, numbers, np.arange(len(codes)))
    taken = first[numbers] < np.arange(len(codes))
    taken[:first_new] = False
    return taken


def _widen(codes: CodeArray, width: int) -> CodeArray:
    """Codes with columns of -1 after them up to a width."""
    wide = np.full((len(codes), width), -1, np.int32)
    wide[:, : codes.shape[1]] = codes
    return wide
