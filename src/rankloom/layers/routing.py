"""Routers: which experts every token runs, with which weights, and penalties of their choices.

Sources: Shazeer et al., ICLR 2017, arXiv:1701.06538 (top k); Wang et al., 2024, arXiv:2412.14711
    (ReLU routing and its budget); Fedus et al., JMLR 2022, arXiv:2101.03961 (balance).
Equations, for one token x and its experts E_1 ... E_n, which give y = sum_i g_i E_i(x):
    ReLU        g = ReLU(W x + b), s = g
    top k       s = softmax(W x + b), g_i = s_i where s_i is among the k largest, else 0
    gate size   sum of g over tokens and experts, mean over rows
    balance     n sum_i f_i P_i: f_i the share of all choices that fell on i, P_i mean s_i
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
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
    shared: bool = False
    """Whether one router speaks for all tokens; else each of them has its own."""


class ReLURouter(nn.Module):
    """Gates that are linear where positive: each token runs as many experts as it wants.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        num_experts: experts of a token.
    """

    def __init__(self, num_tokens: int | None, dim: int, num_experts: int) -> None:
        super().__init__()
        self.shared = num_tokens is None
        self.project = token_linear(num_tokens, dim, num_experts)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Routing:
        """The gates, which are the scores."""
        gates = functional.relu(self.project(x))
        return Routing(gates, gates, self.shared)


class TopKRouter(nn.Module):
    """The largest of a softmax over the experts.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        num_experts: experts of a token.
        num_active: experts that run for a token.
        normalised: whether the gates of a token's chosen experts sum to one.
        bias: whether the scores have biases.

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
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= num_active <= num_experts:
            raise ValueError(
                "num_active must be between 1 and num_experts; "
                f"got num_active={num_active}, num_experts={num_experts}"
            )
        self.num_active = num_active
        self.normalised = normalised
        self.shared = num_tokens is None
        self.project = token_linear(num_tokens, dim, num_experts, bias=bias)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Routing:
        """The gates, and the softmax as scores; both float32 at least."""
        x = self.project(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        scores = torch.softmax(x, dim=-1, dtype=dtype)
        largest, index = scores.topk(self.num_active, dim=-1)  # [batch, tokens, num_active]
        if self.normalised:
            largest = largest / largest.sum(-1, keepdim=True)
        gates = torch.zeros_like(scores).scatter(-1, index, largest)
        return Routing(gates, scores, self.shared)


def gate_size(routing: Routing) -> Float[Tensor, ""]:
    """The gates' sum over tokens and experts, mean over rows: what keeps ReLU gates at zero."""
    return routing.gates.float().sum((1, 2)).mean()


def balance(
    routing: Routing, mask: Bool[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, ""]:
    """Experts times the product of share of choices and mean score; 1 where all are used alike.

    Of every router by itself, over the tokens that it speaks for, then the mean over routers.

    Args:
        routing: what the routers said.
        mask: False at padding, which does not count; None: there is none.

    Returns:
        The loss; 0 where nothing counts or nothing was chosen.
    """
    chosen, scores = (routing.gates != 0).float(), routing.scores.float()
    real = torch.ones_like(chosen[..., :1]) if mask is None else mask.unsqueeze(-1).float()
    axes = (0, 1) if routing.shared else (0,)
    tiny = torch.finfo(torch.float32).tiny
    choices = (chosen * real).sum(axes)  # [tokens, experts], or [experts] where they share a router
    share = choices / choices.sum(-1, keepdim=True).clamp(min=tiny)
    counts = real.sum(axes)  # [tokens, 1], or [1]
    mean_scores = (scores * real).sum(axes) / counts.clamp(min=1)
    num_experts = routing.gates.shape[2]
    per_router = num_experts * (share * mean_scores).sum(-1, keepdim=True)
    heard = (counts > 0).float()  # a token that is padding in every row says nothing
    return (per_router * heard).sum() / heard.sum().clamp(min=1)


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
