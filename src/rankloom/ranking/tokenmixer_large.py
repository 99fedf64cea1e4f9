"""TokenMixer-Large: mix, a network per mixed token, unmix, a network per token.

Source: Jiang et al., 2026, arXiv:2602.06563, as notes of others tell it; the paper itself was not
    at hand.
Equations, for T tokens X of width D and H heads:
    M  = mix(RMSNorm(X))                     (T, D) -> (H, T D / H), see `layers.token_mixing`
    M' = M + pSwiGLU_1(M)                    weights of its own for each of the H mixed tokens
    X' = X + pSwiGLU_2(RMSNorm(revert(M')))  weights of its own for each of the T tokens
    pSwiGLU_t(x) = W_down[t] (SiLU(W_gate[t] x) * (W_up[t] x)), with biases; W_down starts 0.01
        times as large as usual
    with experts  pSwiGLU_t(x) = alpha sum_i g_ti E_ti(x) + E_t0(x), g the k - 1 largest of
        softmax(R[t] x + r[t]); an expert has 1/n of the hidden units, n with the shared one
    every k layers but at the end, the input of the first of them is added to the output of the last
    loss = L(y) + weight * mean over layers l < L of L(y_l), y_l the logits that X[l] gives
Differs from the paper: nothing known.
The paper does not say, or the notes disagree:
    - whether the mixed tokens have a skip of their own: one note has it; `inner_residual`.
    - where the norms are: two of three have them as above.
    - what gives the intermediate logits, and their weight: here the model's own last norm and head.
    - what the output is: the mean of all tokens here; the global token, which is the first, is
      another choice of the pooling.
    - whether the gates of the chosen experts are normalised (here they are not), and whether a loss
      keeps the experts' loads balanced: `balance_weight`, none by default.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.experts import TokenExperts
from rankloom.layers.losses import ranking_loss
from rankloom.layers.norm import RMSNorm
from rankloom.layers.routing import Routing, TopKRouter, balance
from rankloom.layers.token_mixing import TokenMixing
from rankloom.layers.token_mlp import TokenSwiGLU
from rankloom.protocols import Loss
from rankloom.ranking.connections import connect, input_norm
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import FieldTokens, PerField
from rankloom.schema import Schema

Tokens = Float[Tensor, "batch tokens dim"]


@dataclass(frozen=True)
class _Trace:
    """What every layer of a run read, and how its experts were chosen."""

    reads: list[Tensor] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)


class OneNetwork(Config):
    """One network for every token."""

    kind: Literal["network"] = "network"
    balance_weight: ClassVar[float] = 0.0

    def build(
        self, num_tokens: int, dim: int, hidden_dim: int, dropout: float, down_scale: float
    ) -> nn.Module:
        """The networks, called with tokens and the trace."""
        network = TokenSwiGLU(num_tokens, dim, hidden_dim, dropout=dropout, down_scale=down_scale)
        return _OneNetwork(network)


class TopKExperts(Config):
    """The network cut into experts: one for all rows, and the best few of the others."""

    kind: Literal["top_k_experts"] = "top_k_experts"
    num_experts: int = Field(4, ge=2)
    """Experts of every token, the shared one included, each with its share of the hidden
    units."""
    num_active: int = Field(2, ge=2)
    """Experts that run for a row, the shared one included."""
    gate_scale: float = Field(2.0, gt=0)
    """Factor of the chosen experts (alpha): 2 where half of the experts run, 4 for a quarter."""
    balance_weight: float = Field(0.0, ge=0)
    """Weight of the loss that keeps the experts' loads equal, mean over networks."""
    sparse: bool = True
    """Run experts only for the rows that chose them."""

    def build(
        self, num_tokens: int, dim: int, hidden_dim: int, dropout: float, down_scale: float
    ) -> nn.Module:
        """The experts, called with tokens and the trace.

        Raises:
            ValueError: more experts are to run than there are.
        """
        if self.num_active > self.num_experts:
            raise ValueError(
                "num_active must be at most num_experts; "
                f"got num_active={self.num_active}, num_experts={self.num_experts}"
            )
        each = -(-hidden_dim // self.num_experts)  # rounded up
        routed = self.num_experts - 1
        return _SharedAndChosen(
            TokenSwiGLU(num_tokens, dim, each, dropout=dropout, down_scale=down_scale),
            TokenExperts(
                num_tokens,
                routed,
                dim,
                each,
                activation="swiglu",
                dropout=dropout,
                down_scale=down_scale,
                sparse=self.sparse,
            ),
            TopKRouter(num_tokens, dim, routed, self.num_active - 1),
            self.gate_scale,
        )


class TokenMixerLargeConfig(TokenNetwork):
    """Sizes of the layers, what a token's network is, and what helps depth."""

    tokens: FieldTokens = PerField(global_token=True)
    """How fields become tokens."""
    num_heads: int = Field(8, gt=0)
    """Mixed tokens; divides `dim`, need not be the number of tokens."""
    expansion: int = Field(2, gt=0)
    """Width of a token's hidden layer, in widths of the token, mixed tokens likewise."""
    network: Annotated[OneNetwork | TopKExperts, Field(discriminator="kind")] = OneNetwork()
    """What every token has of its own: network or top_k_experts."""
    inner_residual: bool = True
    """Add the mixed tokens to what their networks make of them."""
    residual_interval: int | None = Field(2, ge=2)
    """Layers that a further residual spans; none: there is none."""
    auxiliary_weight: float = Field(0.1, ge=0)
    """Weight of the losses of the logits that the layers before the last give, mean over them."""
    down_scale: float = Field(0.01, gt=0)
    """Factor of the starting values of W_down."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""

    def build_networks(self, num_tokens: int, dim: int) -> nn.Module:
        """The networks of `num_tokens` tokens of width `dim`."""
        hidden_dim = self.expansion * dim
        return self.network.build(num_tokens, dim, hidden_dim, self.dropout, self.down_scale)


class _OneNetwork(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tokens, _: _Trace) -> Tokens:
        return self.network(x)


class _SharedAndChosen(nn.Module):
    def __init__(
        self, shared: nn.Module, experts: nn.Module, router: nn.Module, gate_scale: float
    ) -> None:
        super().__init__()
        self.shared = shared
        self.experts = experts
        self.router = router
        self.gate_scale = gate_scale

    def forward(self, x: Tokens, trace: _Trace) -> Tokens:
        routing = self.router(x)
        trace.routings.append(routing)
        return self.shared(x) + self.experts(x, self.gate_scale * routing.gates)


class _Skip(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tokens, trace: _Trace) -> Tokens:
        return x + self.network(x, trace)


class _Block(nn.Module):
    """The update of one layer."""

    def __init__(self, config: TokenMixerLargeConfig, num_tokens: int) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.mix = TokenMixing(config.dim, config.num_heads)
        mixed_dim = num_tokens * self.mix.head_dim
        mixed = config.build_networks(config.num_heads, mixed_dim)
        self.mixed_networks = _Skip(mixed) if config.inner_residual else mixed
        self.revert = TokenMixing(mixed_dim, num_tokens)
        self.reverted_norm = RMSNorm(config.dim)
        self.networks = config.build_networks(num_tokens, config.dim)

    def forward(self, x: Tokens, trace: _Trace) -> Tokens:
        trace.reads.append(x)
        mixed = self.mixed_networks(self.mix(self.norm(x)), trace)  # [batch, heads, mixed_dim]
        return self.networks(self.reverted_norm(self.revert(mixed)), trace)


class _WithEarlier(nn.Module):
    """A layer that also adds what the first of the last `interval` layers read."""

    def __init__(self, block: nn.Module, interval: int) -> None:
        super().__init__()
        self.block = block
        self.interval = interval

    def forward(self, x: Tokens, trace: _Trace) -> Tokens:
        update = self.block(x, trace)
        return update + trace.reads[-self.interval]


class TokenMixerLarge(nn.Module):
    """Mixing layers over the tokens of a row; tasks share everything but the last layer."""

    def __init__(self, config: TokenMixerLargeConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_tokens = self.tokens.num_fields
        layers: list[nn.Module] = [_Block(config, num_tokens) for _ in range(config.num_layers)]
        if (interval := config.residual_interval) is not None:
            for last in range(interval - 1, config.num_layers - 1, interval):
                layers[last] = _WithEarlier(layers[last], interval)
        self.stack = connect([[layer] for layer in layers], config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_tokens, schema.num_tasks)
        has_auxiliary = config.auxiliary_weight > 0 and config.num_layers > 1
        if has_auxiliary and self.stack.out_dim != config.dim:
            raise ValueError(
                "the head reads every layer's tokens, so the connection must keep their width; "
                f"got width {self.stack.out_dim} for dim={config.dim}; "
                "set auxiliary_weight = 0 with this connection"
            )
        self.auxiliary_weight = config.auxiliary_weight if has_auxiliary else 0.0
        self.balance_weight = config.network.balance_weight

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.head(self.stack(self.tokens(batch).fields, _Trace()))

    def loss(self, batch: Batch) -> Loss:
        """The labels' loss, that of the earlier layers' logits, and the experts' balance.

        Parts, where they have a weight: `labels`, `auxiliary` (weighted mean over layers) and
        `balance` (weighted mean over networks); the first two summed over tasks.

        Raises:
            ValueError: the batch has no labels.
        """
        trace = _Trace()
        logits = self.head(self.stack(self.tokens(batch).fields, trace))
        labels = ranking_loss(logits, batch)
        parts: dict[str, Tensor] = {"labels": labels.total}
        if self.auxiliary_weight > 0:
            earlier = [self.head(self.stack.norm(read)) for read in trace.reads[1:]]
            losses = [ranking_loss(one, batch).total for one in earlier]
            parts["auxiliary"] = self.auxiliary_weight * torch.stack(losses).mean()
        if self.balance_weight > 0:
            losses = [balance(routing) for routing in trace.routings]
            parts["balance"] = self.balance_weight * torch.stack(losses).mean()
        if len(parts) == 1:
            return labels
        return Loss(torch.stack(list(parts.values())).sum(), {**parts, **labels.parts})
