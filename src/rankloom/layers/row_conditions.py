"""Rows of a batch that are multiplied by matrices of their conditions.

A condition is a scenario, or what a row alone has. How rows come by theirs decides what is
computed:

- `GroupedRows`: few conditions, rows of one lie together: a matrix product for each.
- `ChosenRows`: the same in a program that is traced, which knows no numbers of rows: every row
  meets all conditions' matrices, and its own result is taken.
- `SingleRows`: every row has a condition of its own: matrices for some rows at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.layers.chunked import in_chunks
from rankloom.layers.grouped_product import grouped_product
from rankloom.layers.scenarios import ScenarioRows, choose, scenario_of

Rows = Float[Tensor, "batch *tokens in_features"]
"""A layer's input: the rows, or tokens of the rows."""
Matrices = Callable[[Tensor], Float[Tensor, "conditions out_features in_features"]]
"""Matrices of some conditions from the numbers [conditions, ...] generated for them."""


class RowConditions(Protocol):
    """Which condition every row has."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""

    def product(
        self, x: Rows, generated: Tensor, matrices: Matrices, parameters: Sequence[Tensor]
    ) -> Tensor:
        """Every row, or every token of it, times the matrix of the row's condition.

        Args:
            x: the rows.
            generated: [conditions, ...], what the matrices are made from.
            matrices: makes them, each condition's by itself.
            parameters: what `matrices` uses that trains, besides what it is given.
        """


@dataclass(frozen=True)
class GroupedRows:
    """Rows that lie together by their condition, in the order of the conditions."""

    sizes: list[int]
    """Rows of each condition that occurs."""
    present: list[int]
    """The conditions that occur; one at least."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return sum(self.sizes)

    def product(
        self, x: Rows, generated: Tensor, matrices: Matrices, parameters: Sequence[Tensor]
    ) -> Tensor:
        """As `RowConditions` says; matrices of the conditions that occur are made once."""
        if len(self.present) < generated.shape[0]:
            generated = torch.stack([generated[index] for index in self.present])
        return _each(x, matrices(generated), self.sizes)

    def fixed_product(self, x: Rows, matrices: Float[Tensor, "conditions out in"]) -> Tensor:
        """The same with the matrices of all conditions at hand."""
        sizes = [0] * matrices.shape[0]
        for condition, size in zip(self.present, self.sizes, strict=True):
            sizes[condition] = size
        return _each(x, matrices, sizes)


def _each(x: Rows, matrices: Float[Tensor, "conditions out in"], sizes: list[int]) -> Tensor:
    """Rows, or tokens of rows, that lie together by condition, times the conditions' matrices."""
    tokens = prod(x.shape[1:-1])
    flat = grouped_product(x.flatten(0, -2), matrices, [size * tokens for size in sizes])
    return torch.unflatten(flat, 0, x.shape[:-1])


@dataclass(frozen=True)
class ChosenRows:
    """Rows of a traced program, each with the index of its condition."""

    index: Int[Tensor, " batch"]
    """Condition of every row."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.index.shape[0]

    def product(
        self, x: Rows, generated: Tensor, matrices: Matrices, parameters: Sequence[Tensor]
    ) -> Tensor:
        """As `RowConditions` says."""
        return self.fixed_product(x, matrices(generated))

    def fixed_product(self, x: Rows, matrices: Float[Tensor, "conditions out in"]) -> Tensor:
        """The same with the matrices of all conditions at hand."""
        every = torch.stack([functional.linear(x, matrix) for matrix in matrices.unbind()], 1)
        return choose(every, self.index + 1)  # it counts from one


@dataclass(frozen=True)
class SingleRows:
    """Rows that have a condition each."""

    num_rows: int
    """Rows of the batch."""

    def product(
        self, x: Rows, generated: Tensor, matrices: Matrices, parameters: Sequence[Tensor]
    ) -> Tensor:
        """As `RowConditions` says; memory for the matrices of a few rows, made again in backward.

        In a traced program the matrices of all rows are held.
        """

        def of_some(rows: Tensor, numbers: Tensor) -> Tensor:
            tokens = rows.flatten(1, -2) if rows.ndim > 2 else rows.unsqueeze(1)
            return torch.bmm(tokens, matrices(numbers).mT)  # [rows, tokens, out_features]

        # No matrix has more numbers than the largest of what it is made from.
        size = max(generated[:1].numel(), *(p.numel() for p in parameters), 1)
        out = in_chunks(of_some, parameters, size, x, generated)
        return torch.unflatten(out, 1, x.shape[1:-1]) if x.ndim > 2 else out.squeeze(1)


@dataclass(frozen=True)
class ScenarioBatch:
    """A batch in the order in which generated layers want its rows."""

    batch: Batch
    """The rows; those of a scenario lie together, but in a traced program."""
    rows: GroupedRows | ChosenRows
    """Their scenarios, the unknown one being one of them, the first."""
    order: ScenarioRows | None
    """How the rows were sorted; None: they were not."""

    @classmethod
    def of(cls, batch: Batch, num_scenarios: int) -> "ScenarioBatch":
        """Sort the rows, once for all layers.

        Args:
            batch: the rows, of scenarios 0 to K.
            num_scenarios: known scenarios, K.

        Raises:
            ValueError: the batch does not say the scenarios.
        """
        scenario = scenario_of(batch).long()
        # The unknown scenario is one like all others here, so all are counted from 1.
        order = ScenarioRows.of(scenario + 1, num_scenarios + 1)
        if order.order is None or order.sizes is None:
            return cls(batch, ChosenRows(scenario), None)
        present = [index for index, size in enumerate(order.sizes) if size] or [0]
        rows = GroupedRows([order.sizes[index] for index in present], present)
        if len(present) == 1:
            return cls(batch, rows, None)
        return cls(batch.select(order.order), rows, order)

    def restore(self, outputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Outputs in the order of the batch that was given."""
        return outputs if self.order is None else self.order.merge([outputs])
