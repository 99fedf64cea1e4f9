"""Experts of tokens, run for all rows or for the rows that chose them.

Source: Shazeer et al., ICLR 2017, arXiv:1701.06538. The gates come from `routing`.
Equation, for one token x and its experts E_1 ... E_n: y = sum_i g_i E_i(x)
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout

Sparse = bool | Literal["auto"]
"""Whether experts run only for the rows whose gate is not zero; auto: where that is faster.

Then the rows of an expert follow the data, so what is compiled or exported runs all for all rows.
"""

CHOICE_COST = 64
"""What it takes to hand a row to an expert and to add its output to those of the row's others, per
unit of the row's width: as long as so many multiply-adds. This and the two below are set after the
one-thread times of `benchmarks/experts.py`, so that a choice of rows seldom costs time."""
EXPERT_COST = 800_000
"""What it takes to run one more expert by itself, in the same unit."""
BATCHED_EXPERT_COST = 50_000
"""The same where all experts are one batched product."""


def choosing_pays(
    gates: Float[Tensor, "batch tokens experts"],
    dim: int,
    multiply_adds: int,
    *,
    shared: bool,
) -> bool:
    """Whether experts are run sooner for the rows that chose them than for all.

    On other devices than a CPU the answer is no: counting the choices would make them wait.

    Args:
        gates: weights of the experts' outputs.
        dim: width of a row.
        multiply_adds: of one expert for one row.
        shared: whether tokens share their experts.
    """
    if gates.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    num_sets, num_experts = 1 if shared else gates.shape[1], gates.shape[2]
    work = gates.numel() * multiply_adds
    start = num_sets * num_experts * (EXPERT_COST if shared else BATCHED_EXPERT_COST)
    if work <= start:  # most calls at serving: the gates need not be looked at
        return False
    if shared:
        choices = int(torch.count_nonzero(gates))
    else:  # all are given as many rows as the busiest
        choices = int((gates != 0).sum(0).max()) * num_sets * num_experts
    return choices * (multiply_adds + CHOICE_COST * dim) + start < work


class _SwiGLU(nn.Module):
    def forward(self, x: Float[Tensor, "*batch twice"]) -> Float[Tensor, "*batch hidden"]:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up


class TokenExperts(nn.Module):
    """Experts of every token, each a network of one hidden layer, weighed by gates.

    Args:
        num_tokens: tokens, each with experts of its own; None: all share theirs.
        num_experts: experts of a token.
        dim: width of a token.
        hidden_dim: width of an expert's hidden layer.
        activation: gelu, W2 GELU(W1 x + b1) + b2, or swiglu, as `TokenSwiGLU`.
        dropout: share of hidden units dropped in training.
        down_scale: the starting values of the last matrix are this much smaller than usual.
        sparse: whether a call runs experts only for rows whose gate is not zero.
    """

    def __init__(
        self,
        num_tokens: int | None,
        num_experts: int,
        dim: int,
        hidden_dim: int,
        *,
        activation: Literal["gelu", "swiglu"] = "gelu",
        dropout: float = 0.0,
        down_scale: float = 1.0,
        sparse: Sparse = "auto",
    ) -> None:
        super().__init__()
        sets = 1 if num_tokens is None else num_tokens
        in_dim = 2 * hidden_dim if activation == "swiglu" else hidden_dim
        self.shared = num_tokens is None
        self.sparse = sparse
        self.activation: nn.Module = _SwiGLU() if activation == "swiglu" else nn.GELU()
        self.dropout = Dropout(dropout)
        # Both matrices keep experts next to the hidden units: a token's experts are one wide
        # network, and each of them is a matrix, without copying either way.
        self.expand = nn.Parameter(torch.empty(sets, num_experts, in_dim, dim))
        """[tokens, experts, hidden_dim (twice for swiglu), dim]; xavier-normal."""
        self.expand_bias = nn.Parameter(torch.zeros(sets, num_experts, in_dim))
        """[tokens, experts, hidden_dim (twice for swiglu)]."""
        self.reduce = nn.Parameter(torch.empty(sets, num_experts, hidden_dim, dim))
        """[tokens, experts, hidden_dim, dim]; xavier-normal."""
        self.reduce_bias = nn.Parameter(torch.zeros(sets, num_experts, dim))
        """[tokens, experts, dim]."""
        with torch.no_grad():
            for weight in (*self.expand.flatten(0, 1), *self.reduce.flatten(0, 1)):
                for matrix in weight.split(hidden_dim):
                    nn.init.xavier_normal_(matrix)
            self.reduce.mul_(down_scale)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The weighed sum of the experts' outputs."""
        if self.chooses(gates):
            return self.run_chosen(x, gates)
        return self.run_all(x, gates)

    def chooses(self, gates: Float[Tensor, "batch tokens experts"]) -> bool:
        """Whether a call with these gates is `run_chosen`, else `run_all`."""
        if self.sparse == "auto":
            multiply_adds = self.expand[0, 0].numel() + self.reduce[0, 0].numel()
            dim = self.expand.shape[3]
            return choosing_pays(gates, dim, multiply_adds, shared=self.shared)
        return self.sparse and not torch.compiler.is_compiling()

    def run_all(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The sum, every expert run for every row: two matrix products per token."""
        rows, weights = self._by_set(x), self._by_set(gates)  # [sets, rows, dim or experts]
        hidden = torch.baddbmm(
            self.expand_bias.flatten(1).unsqueeze(1), rows, self.expand.flatten(1, 2).mT
        )
        hidden = torch.unflatten(hidden, 2, self.expand.shape[1:3])
        hidden = self.dropout(self.activation(hidden))  # [sets, rows, experts, hidden_dim]
        hidden = (hidden * weights.unsqueeze(-1).to(hidden.dtype)).flatten(2)
        bias = torch.bmm(weights.to(self.reduce_bias.dtype), self.reduce_bias)
        out = torch.baddbmm(bias, hidden, self.reduce.flatten(1, 2))
        return self._by_token(out, x)

    def run_chosen(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The sum, experts run for the rows with a gate other than zero.

        Where tokens share their experts, each of these is run for the rows that chose it, however
        uneven the choice is. Where every token has its own there are many of them, with few rows
        each: they are given as many rows as the busiest has, the rest of these with gate zero, so
        that one batched product serves all.
        """
        rows, weights = self._by_set(x), self._by_set(gates).mT  # weights: [sets, experts, rows]
        if self.shared:
            out, place = self._each_its_rows(rows[0], weights[0])
        else:
            out, place = self._as_many_as_the_busiest(rows, weights)
        total = _sum_by_row(out, place, rows.shape[0] * rows.shape[1])
        return self._by_token(torch.unflatten(total, 0, rows.shape[:2]), x)

    def _each_its_rows(
        self, rows: Float[Tensor, "rows dim"], weights: Float[Tensor, "experts rows"]
    ) -> tuple[Float[Tensor, "choices dim"], Int[Tensor, " choices"]]:
        """Weighed outputs of every expert one after another, and the rows they belong to."""
        place, given, counts = _choices(weights)
        chosen = torch.split(rows.index_select(0, place), counts)
        outs = []
        for x, up, up_bias, down, down_bias in zip(
            chosen, *(part[0].unbind(0) for part in self._parts()), strict=True
        ):
            hidden = self.dropout(self.activation(functional.linear(x, up, up_bias)))
            outs.append(torch.addmm(down_bias, hidden, down))
        out = torch.cat(outs)
        return out * given.to(out.dtype), place

    def _as_many_as_the_busiest(
        self, rows: Float[Tensor, "sets rows dim"], weights: Float[Tensor, "sets experts rows"]
    ) -> tuple[Float[Tensor, "choices dim"], Int[Tensor, " choices"]]:
        """Weighed outputs of every set's experts, and the rows they belong to, set after set."""
        chosen = weights != 0
        busiest = int(chosen.sum(-1).max())
        index = chosen.to(torch.float32).topk(busiest, dim=-1, sorted=False).indices
        given = weights.gather(2, index).flatten(0, 1).unsqueeze(-1)  # [sets * experts, busiest, 1]
        first = rows.shape[1] * torch.arange(len(rows), device=rows.device)
        place = (index + first[:, None, None]).flatten(0, 1)  # [sets * experts, busiest]
        up, up_bias, down, down_bias = (part.flatten(0, 1) for part in self._parts())
        hidden = torch.baddbmm(up_bias.unsqueeze(1), rows.flatten(0, 1)[place], up.mT)
        hidden = self.dropout(self.activation(hidden))  # [sets * experts, busiest, hidden_dim]
        out = torch.baddbmm(down_bias.unsqueeze(1), hidden, down)
        return (out * given.to(out.dtype)).flatten(0, 1), place.flatten()

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.expand, self.expand_bias, self.reduce, self.reduce_bias

    def _by_set(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "sets rows width"]:
        """Rows of every token, or of all tokens where they share their experts."""
        if self.shared:
            return x.flatten(0, 1).unsqueeze(0)
        return x.transpose(0, 1)

    def _by_token(
        self, out: Float[Tensor, "sets rows dim"], x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        if self.shared:
            return torch.unflatten(out[0], 0, x.shape[:2])
        return out.transpose(0, 1)


class ExpertLinear(nn.Module):
    """sum_e g_e x W[e] over every token: linear layers without biases, weighed by gates.

    The gates weigh what the experts read, not what they give: all experts are then one matrix
    product over the weighed copies of a token, side by side, and their sum is part of it.

    Args:
        num_experts: linear layers.
        in_dim: width of a token.
        out_dim: width of a token after it.
        sparse: whether a call runs experts only for tokens whose gate is not zero.
    """

    def __init__(
        self, num_experts: int, in_dim: int, out_dim: int, *, sparse: Sparse = "auto"
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.weight = nn.Parameter(torch.empty(num_experts, in_dim, out_dim))
        """[experts, in_dim, out_dim]; xavier-normal for each expert."""
        for matrix in self.weight.detach():
            nn.init.xavier_normal_(matrix)

    def forward(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens out_dim"]:
        """The weighed sum."""
        if self.chooses(gates):
            return self.run_chosen(x, gates)
        return self.run_all(x, gates)

    def chooses(self, gates: Float[Tensor, "batch tokens experts"]) -> bool:
        """Whether a call with these gates is `run_chosen`, else `run_all`."""
        if self.sparse == "auto":
            return choosing_pays(gates, self.weight.shape[1], self.weight[0].numel(), shared=True)
        return self.sparse and not torch.compiler.is_compiling()

    def run_all(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens out_dim"]:
        """The sum, every expert run for every token: one matrix product."""
        weighed = x.unsqueeze(2) * gates.unsqueeze(3).to(x.dtype)  # [batch, tokens, experts, in]
        return weighed.flatten(2) @ self.weight.flatten(0, 1)

    def run_chosen(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        gates: Float[Tensor, "batch tokens experts"],
    ) -> Float[Tensor, "batch tokens out_dim"]:
        """The sum, each expert run for the tokens with a gate other than zero."""
        rows = x.flatten(0, 1)
        place, given, counts = _choices(gates.flatten(0, 1).mT)
        weighed = torch.split(rows.index_select(0, place) * given.to(x.dtype), counts)
        out = torch.cat([a @ b for a, b in zip(weighed, self.weight.unbind(0), strict=True)])
        return torch.unflatten(_sum_by_row(out, place, len(rows)), 0, x.shape[:2])


def _choices(
    weights: Float[Tensor, "experts rows"],
) -> tuple[Int[Tensor, " choices"], Float[Tensor, "choices 1"], list[int]]:
    """Rows that chose an expert, one expert after another, their weights, and how many each."""
    expert, place = weights.nonzero(as_tuple=True)
    counts: list[int] = (weights != 0).sum(1).tolist()
    return place, weights[expert, place].unsqueeze(1), counts


def _sum_by_row(
    out: Float[Tensor, "choices dim"], place: Int[Tensor, " choices"], num_rows: int
) -> Float[Tensor, "num_rows dim"]:
    return out.new_zeros(num_rows, out.shape[1]).index_add(0, place, out)
