"""Experts of tokens: routers, experts that run for all rows or for chosen ones, and penalties.

Sources: Shazeer et al., ICLR 2017, arXiv:1701.06538 (top k); Wang et al., 2024, arXiv:2412.14711
    (ReLU routing and its budget); Fedus et al., JMLR 2022, arXiv:2101.03961 (balance).
Equations, for one token x and its experts E_1 ... E_n:
    y = sum_i g_i E_i(x)
    ReLU        g = ReLU(W x + b), s = g
    top k       s = softmax(W x + b), g_i = s_i where s_i is among the k largest, else 0
    gate size   sum of g over tokens and experts, mean over rows
    balance     n sum_i f_i P_i per token: f_i the share of all choices that fell on i, P_i mean s_i
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.token_mlp import token_linear


@dataclass(frozen=True)
class Routing:
    """What a router says of every token."""

    gates: Float[Tensor, "batch tokens experts"]
    """Weights of the experts' outputs; an expert with weight 0 need not run."""
    scores: Float[Tensor, "batch tokens experts"]
    """What the gates were chosen from."""


class ReLURouter(nn.Module):
    """Gates that are linear where positive: each token runs as many experts as it wants.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        num_experts: experts of a token.
    """

    def __init__(self, num_tokens: int | None, dim: int, num_experts: int) -> None:
        super().__init__()
        self.project = token_linear(num_tokens, dim, num_experts)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Routing:
        """The gates, which are the scores."""
        gates = functional.relu(self.project(x))
        return Routing(gates, gates)


class TopKRouter(nn.Module):
    """The largest of a softmax over the experts.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        num_experts: experts of a token.
        num_active: experts that run for a token.
        normalised: whether the gates of a token's chosen experts sum to one.

    Raises:
        ValueError: more experts are to run than there are, or none.
    """

    def __init__(
        self,
        num_tokens: int | None,
        dim: int,
        num_experts: int,
        num_active: int,
        *,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= num_active <= num_experts:
            raise ValueError(
                "num_active must be between 1 and num_experts; "
                f"got num_active={num_active}, num_experts={num_experts}"
            )
        self.num_active = num_active
        self.normalised = normalised
        self.project = token_linear(num_tokens, dim, num_experts)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Routing:
        """The gates, and the softmax as scores; both float32 at least."""
        x = self.project(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        scores = torch.softmax(x, dim=-1, dtype=dtype)
        largest, index = scores.topk(self.num_active, dim=-1)  # [batch, tokens, num_active]
        if self.normalised:
            largest = largest / largest.sum(-1, keepdim=True)
        return Routing(torch.zeros_like(scores).scatter(-1, index, largest), scores)


def gate_size(routing: Routing) -> Float[Tensor, ""]:
    """The gates' sum over tokens and experts, mean over rows: what keeps ReLU gates at zero."""
    return routing.gates.float().sum((1, 2)).mean()


def balance(routing: Routing) -> Float[Tensor, ""]:
    """Experts times the product of share of choices and mean score; 1 where all are used alike.

    Per token, then the mean. Where tokens share a router, lay them along the rows first.
    """
    chosen = (routing.gates != 0).float().mean(0)  # [tokens, experts]
    share = chosen / chosen.sum(-1, keepdim=True).clamp(min=torch.finfo(chosen.dtype).tiny)
    num_experts = routing.gates.shape[2]
    return num_experts * (share * routing.scores.float().mean(0)).sum(-1).mean()


class GateBudget(nn.Module):
    """A weight of `gate_size` that grows while more gates are open than wanted, else shrinks.

    Args:
        active_share: share of the gates that shall be open.
        rate: factor by which the weight changes per training step.
        start: the first weight.
    """

    weight: Tensor
    """Scalar from `start`, below which it would not come back, to one."""

    def __init__(self, active_share: float, *, rate: float = 1.2, start: float = 1e-8) -> None:
        super().__init__()
        self.active_share = active_share
        self.rate = rate
        self.start = start
        self.register_buffer("weight", torch.tensor(start))

    def forward(self, routings: Sequence[Routing]) -> Float[Tensor, ""]:
        """The weighted penalty, summed over layers; in training the weight is moved after it."""
        weight = self.weight.clone()  # backward needs the value that was used
        penalty = weight * torch.stack([gate_size(routing) for routing in routings]).sum()
        if self.training:
            excess = torch.sign(open_share(routings) - self.active_share)
            self.weight.mul_(self.rate**excess).clamp_(self.start, 1.0)
        return penalty


def open_share(routings: Sequence[Routing]) -> Float[Tensor, ""]:
    """Share of all gates that are open, mean over layers."""
    return torch.stack([(routing.gates != 0).float().mean() for routing in routings]).mean()


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
        sparse: whether a call runs experts only for rows whose gate is not zero. Then the rows per
            expert follow the data, so what is compiled or exported runs them for all rows.
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
        sparse: bool = True,
    ) -> None:
        super().__init__()
        sets = 1 if num_tokens is None else num_tokens
        in_dim = 2 * hidden_dim if activation == "swiglu" else hidden_dim
        self.shared = num_tokens is None
        self.sparse = sparse
        self.activation: nn.Module = _SwiGLU() if activation == "swiglu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
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
        if self.sparse and not torch.compiler.is_compiling():
            return self.run_chosen(x, gates)
        return self.run_all(x, gates)

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

        Every expert is given as many rows as the busiest has, the rest of them with gate zero: one
        batched product serves all, at the cost of the busiest.
        """
        rows, weights = self._by_set(x), self._by_set(gates).mT  # weights: [sets, experts, rows]
        chosen = weights != 0
        busiest = int(chosen.sum(-1).max())
        index = chosen.to(torch.float32).topk(busiest, dim=-1, sorted=False).indices
        given = weights.gather(2, index).flatten(0, 1).unsqueeze(-1)  # [sets * experts, busiest, 1]
        first = rows.shape[1] * torch.arange(len(rows), device=x.device)
        place = (index + first[:, None, None]).flatten(0, 1)  # [sets * experts, busiest]
        hidden = torch.baddbmm(
            self.expand_bias.flatten(0, 1).unsqueeze(1),
            rows.flatten(0, 1)[place],
            self.expand.flatten(0, 1).mT,
        )
        hidden = self.dropout(self.activation(hidden))  # [sets * experts, busiest, hidden_dim]
        out = torch.baddbmm(
            self.reduce_bias.flatten(0, 1).unsqueeze(1), hidden, self.reduce.flatten(0, 1)
        )
        out = (out * given.to(out.dtype)).flatten(0, 1)
        total = out.new_zeros(rows.shape[0] * rows.shape[1], out.shape[-1])
        total = total.index_add(0, place.flatten(), out)
        return self._by_token(torch.unflatten(total, 0, rows.shape[:2]), x)

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
