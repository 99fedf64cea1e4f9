from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from rankloom.retrieval.collisions import (
    CollisionConfig,
    DedupConfig,
    ExtendConfig,
    LeaveConfig,
    ReassignConfig,
    UniformMappingConfig,
    group_sizes,
    member_numbers,
)
from rankloom.retrieval.protocols import Assignment

NO_VECTORS = torch.empty(0, 0)


@dataclass
class Coded:
    """Codes without vectors."""

    level_sizes: tuple[int, ...]

    def assign(self, vectors: Tensor) -> Assignment:
        raise NotImplementedError

    def code_vectors(self, level: int) -> Tensor | None:
        return None


class Residual:
    """Nearest centres of residuals, level after level."""

    def __init__(self, tables: list[Tensor]) -> None:
        self.tables = tables
        self.level_sizes = tuple(len(table) for table in tables)

    def assign(self, vectors: Tensor) -> Assignment:
        residual, codes = vectors, []
        for table in self.tables:
            code = torch.cdist(residual, table).argmin(1)
            codes.append(code.numpy())
            residual = residual - table[code]
        return Assignment(np.stack(codes, 1).astype(np.int32), vectors - residual, vectors)

    def code_vectors(self, level: int) -> Tensor | None:
        return self.tables[level]

    def last_residuals(self, vectors: Tensor) -> Tensor:
        before = Residual(self.tables[:-1])
        return vectors - before.assign(vectors).reconstruction if self.tables[1:] else vectors


def codes_of(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32)


def test_groups_and_members_equal_a_count() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (50, 3)).astype(np.int32)
    keys = [tuple(row) for row in codes.tolist()]
    counts = Counter(keys)
    assert group_sizes(codes).tolist() == [counts[key] for key in keys]
    seen: Counter[tuple[int, ...]] = Counter()
    for key, member in zip(keys, member_numbers(codes), strict=True):
        assert member == seen[key]
        seen[key] += 1
    assert group_sizes(codes[:0]).size == member_numbers(codes[:0]).size == 0


def test_leave_changes_nothing() -> None:
    codes = codes_of([[1, 1], [1, 1]], 2)
    resolved = LeaveConfig().resolve(Assignment(codes), Coded((2, 2)), NO_VECTORS)
    assert resolved.codes is codes
    assert resolved.level_sizes == (2, 2)


def test_dedup_numbers_the_members_after_the_first_by_hand() -> None:
    codes = codes_of([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [0, 1]], 2)
    resolved = DedupConfig().resolve(Assignment(codes), Coded((2, 2)), NO_VECTORS)
    assert resolved.codes.tolist() == [
        [1, 1, -1],
        [0, 1, -1],
        [1, 1, 0],
        [0, 0, -1],
        [1, 1, 1],
        [0, 1, 0],
    ]
    assert resolved.level_sizes == (2, 2, 2)


def test_dedup_adds_no_level_where_nothing_collides() -> None:
    codes = codes_of([[1, 1], [0, 1]], 2)
    resolved = DedupConfig().resolve(Assignment(codes), Coded((2, 2)), NO_VECTORS)
    assert resolved.codes.shape == (2, 2)
    assert resolved.level_sizes == (2, 2)
    spare = DedupConfig(spare_digits=3).resolve(Assignment(codes), Coded((2, 2)), NO_VECTORS)
    assert spare.level_sizes == (2, 2, 3)


def test_digits_of_shorter_ids_have_codes_behind_those_of_their_level() -> None:
    # The digit of (0) must not make it (0, 0).
    codes = codes_of([[0], [0], [0, 0], [0, 0], [1]], 2)
    resolved = DedupConfig().resolve(Assignment(codes), Coded((2, 3)), NO_VECTORS)
    assert resolved.codes.tolist() == [
        [0, -1, -1],
        [0, 3, -1],
        [0, 0, -1],
        [0, 0, 0],
        [1, -1, -1],
    ]
    assert resolved.level_sizes == (2, 4, 1)


def test_reassign_by_hand() -> None:
    # One level of codes at 0, 1 and 5; vectors .1, .2 and .9 are nearest to 0, 0 and 1.
    tokenizer = Residual([torch.tensor([[0.0], [1.0], [5.0]])])
    vectors = torch.tensor([[0.1], [0.2], [0.9]])
    # The bucket is all three: .1 -> 0, .2 -> 1, .9 -> 5 costs .01 + .64 + 16.81; .1 -> 0,
    # .9 -> 1, .2 -> 5 costs .01 + .01 + 23.04.
    resolved = ReassignConfig().resolve(tokenizer.assign(vectors), tokenizer, vectors)
    assert resolved.codes.tolist() == [[0], [1], [2]]


def test_reassign_is_the_cheapest_of_all_and_leaves_other_prefixes_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(4, 3, generator=generator), 0.5 * torch.randn(5, 3, generator=generator)]
    tokenizer = Residual(tables)
    vectors = torch.randn(12, 3, generator=generator)
    before = tokenizer.assign(vectors)
    resolved = ReassignConfig(overflow="error").resolve(before, tokenizer, vectors)
    assert group_sizes(resolved.codes).max() == 1
    assert (resolved.codes[:, 0] == before.codes[:, 0]).all()
    sizes = group_sizes(before.codes)
    assert sizes.max() > 1
    for first in range(4):
        rows = np.flatnonzero(before.codes[:, 0] == first)
        if rows.size == 0:
            continue
        if sizes[rows].max() == 1:
            assert (resolved.codes[rows] == before.codes[rows]).all()
        residuals = vectors[rows] - tables[0][first]
        costs = torch.cdist(residuals, tables[1]).square().numpy()
        least = min(
            sum(costs[i, code] for i, code in enumerate(choice))
            for choice in permutations(range(5), rows.size)
        )
        got = costs[np.arange(rows.size), resolved.codes[rows, 1]].sum()
        np.testing.assert_allclose(got, least)


def test_more_items_than_codes_overflow() -> None:
    tokenizer = Residual([torch.tensor([[0.0], [1.0]])])
    vectors = torch.tensor([[0.1], [0.1], [0.3], [0.9]])
    assignment = tokenizer.assign(vectors)
    resolved = ReassignConfig().resolve(assignment, tokenizer, vectors)
    assert group_sizes(resolved.codes).max() == 1
    assert resolved.level_sizes == (2, 2)
    with pytest.raises(ValueError, match="4 ids share all codes but the last, but level 1 has 2"):
        ReassignConfig(overflow="error").resolve(assignment, tokenizer, vectors)


def test_uniform_mapping_spreads_collisions_over_the_last_level() -> None:
    tokenizer = Residual([torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [0.1], [0.2]])])
    vectors = torch.tensor([[0.01], [0.02], [10.1], [0.03]])
    before = tokenizer.assign(vectors)
    assert group_sizes(before.codes).tolist() == [3, 3, 1, 3]
    resolved = UniformMappingConfig().resolve(before, tokenizer, vectors)
    assert group_sizes(resolved.codes).max() == 1
    assert resolved.codes[:, 0].tolist() == [0, 0, 1, 0]
    assert resolved.codes[2].tolist() == before.codes[2].tolist()
    assert resolved.level_sizes == (2, 3)


@pytest.mark.parametrize("policy", [ReassignConfig(), UniformMappingConfig()])
def test_last_codes_move_only_where_residuals_are_quantised(
    policy: ReassignConfig | UniformMappingConfig,
) -> None:
    codes = codes_of([[0], [0]], 1)
    with pytest.raises(ValueError, match=f"{policy.kind} needs a tokenizer that quantises"):
        policy.resolve(Assignment(codes), Coded((2,)), NO_VECTORS)


def test_extend_takes_deeper_codes_while_items_collide() -> None:
    codes = codes_of([[0], [0], [0, 1], [1], [2, 2, 2], [2, 2, 2]], 3)
    deeper = codes_of([[0, 1, 2], [0, 2, 0], [0, 1, 1], [1, 0, 0], [2, 2, 2], [2, 2, 2]], 3)
    assignment = Assignment(codes, alternatives=deeper)
    resolved = ExtendConfig().resolve(assignment, Coded((3, 3, 3)), NO_VECTORS)
    # Item 0 becomes (0, 1), which item 2 has: both go on to a third code.
    assert resolved.codes.tolist() == [
        [0, 1, 2, -1],
        [0, 2, -1, -1],
        [0, 1, 1, -1],
        [1, -1, -1, -1],
        [2, 2, 2, -1],
        [2, 2, 2, 0],
    ]
    assert resolved.level_sizes == (3, 3, 3, 1)
    with pytest.raises(ValueError, match="whose ids differ in length"):
        ExtendConfig().resolve(Assignment(codes), Coded((3, 3, 3)), NO_VECTORS)


@pytest.mark.parametrize("kind", ["leave", "dedup", "reassign", "uniform_mapping", "extend"])
def test_policies_by_name(kind: str) -> None:
    assert TypeAdapter(CollisionConfig).validate_python({"kind": kind}).kind == kind
