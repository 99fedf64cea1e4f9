"""RankMixer: token mixing without parameters, then a network of its own for every token.

Source: Zhu et al., 2025, arXiv:2507.15551, section 3, as notes of others tell it; the paper itself
    was not at hand.
Equations, for T tokens X of width D, each cut into H = T heads:
    mix(X)[h] = [X[1]^(h); ...; X[T]^(h)],  X[t]^(h) the h-th of T pieces of token t
    S  = LN(mix(X) + X)
    X' = LN(PFFN(S) + S),  PFFN_t(s) = W2[t] GELU(W1[t] s + b1[t]) + b2[t],  hidden width k D
    logits = MLP(mean over t of X[L][t])
    with experts    PFFN_t(s) = sum_i g_ti E_ti(s),  g_t = ReLU(R[t] s + r[t]), E_ti like PFFN_t
    loss            L(y_serving) + L(y_training) + lambda sum_ti g_ti(serving)
Differs from the paper: with a connection other than `post_norm` the layers normalise their input
    (RMSNorm) in place of their sums.
The paper does not say, or the notes do not:
    - what the two routers train on. Experts have one router that trains with all experts ("dense
      training") and one that serves ("sparse inference"); only the second is penalised. Here the
      stack is run once with each in training, and both outputs learn the labels.
    - how lambda keeps to the budget: here it grows by a fifth per step while more than
      `active_share` of the serving gates are open and shrinks otherwise, as in ReMoE
      (arXiv:2412.14711).
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
from rankloom.layers.routing import GateBudget, ReLURouter, Routing, open_share
from rankloom.layers.token_mixing import TokenMixing
from rankloom.layers.token_mlp import TokenMLP
from rankloom.protocols import Loss
from rankloom.ranking.connections import Connection, PostNormConfig, connect, input_norm
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import FieldTokens, Slices
from rankloom.schema import Schema


@dataclass(frozen=True)
class _Pass:
    """One run of the stack: which router decides, and what it decided in every layer."""

    router: int
    routings: list[Routing] = field(default_factory=list)


class OneNetwork(Config):
    """One network for every token."""

    kind: Literal["network"] = "network"
    num_routers: ClassVar[int] = 1

    def build(self, num_tokens: int, dim: int, hidden_dim: int, dropout: float) -> nn.Module:
        """The networks of a layer, called with tokens and the pass."""
        return _OneNetwork(TokenMLP(num_tokens, dim, hidden_dim, dropout=dropout))

    def build_budget(self) -> GateBudget | None:
        """None: nothing is routed."""
        return None


class ReLUExperts(Config):
    """Several networks for every token; gates open as many of them as a row needs."""

    kind: Literal["relu_experts"] = "relu_experts"
    num_routers: ClassVar[int] = 2
    num_experts: int = Field(4, gt=0)
    """Networks of every token, each as wide as the only one would be."""
    active_share: float = Field(0.25, gt=0, le=1)
    """Share of them that shall run at serving."""
    sparse: bool = True
    """Run experts only for the rows that need them, where only the serving router decides."""

    def build(self, num_tokens: int, dim: int, hidden_dim: int, dropout: float) -> nn.Module:
        """The experts of a layer, called with tokens and the pass."""
        experts = TokenExperts(
            num_tokens, self.num_experts, dim, hidden_dim, dropout=dropout, sparse=self.sparse
        )
        routers = [ReLURouter(num_tokens, dim, self.num_experts) for _ in range(self.num_routers)]
        return _RoutedNetworks(experts, routers)

    def build_budget(self) -> GateBudget | None:
        """What keeps serving to its share of experts."""
        return GateBudget(self.active_share)


class RankMixerConfig(TokenNetwork):
    """Sizes of the layers, and what a token's network is."""

    tokens: FieldTokens = Slices()
    """How fields become tokens; their number divides `dim`."""
    connection: Connection = PostNormConfig()
    """What lies between layers; any but `post_norm` makes them normalise their input instead."""
    expansion: int = Field(4, gt=0)
    """Width of a token's hidden layer, in widths of a token (k)."""
    network: Annotated[OneNetwork | ReLUExperts, Field(discriminator="kind")] = OneNetwork()
    """What every token has of its own: network or relu_experts."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""


class _Mixing(nn.Module):
    def __init__(self, config: RankMixerConfig, num_tokens: int) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.mix = TokenMixing(config.dim, num_tokens)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], _: _Pass
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.mix(self.norm(x))


class _TokenNetworks(nn.Module):
    def __init__(self, config: RankMixerConfig, num_tokens: int) -> None:
        super().__init__()
        self.norm = input_norm(config.connection, config.dim)
        self.network = config.network.build(
            num_tokens, config.dim, config.expansion * config.dim, config.dropout
        )

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], run: _Pass
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.network(self.norm(x), run)


class _OneNetwork(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], _: _Pass
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.network(x)


class _RoutedNetworks(nn.Module):
    def __init__(self, experts: TokenExperts, routers: list[ReLURouter]) -> None:
        super().__init__()
        self.experts = experts
        self.routers = nn.ModuleList(routers)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], run: _Pass
    ) -> Float[Tensor, "batch tokens dim"]:
        routing = self.routers[run.router](x)
        run.routings.append(routing)
        if self.training:  # the training router opens most gates
            return self.experts.run_all(x, routing.gates)
        return self.experts(x, routing.gates)


class RankMixer(nn.Module):
    """Mixing layers over the tokens of a row; tasks share everything but the last layer."""

    def __init__(self, config: RankMixerConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_tokens = self.tokens.num_fields
        layers = [
            [_Mixing(config, num_tokens), _TokenNetworks(config, num_tokens)]
            for _ in range(config.num_layers)
        ]
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_tokens, schema.num_tasks)
        self.num_routers = config.network.num_routers
        self.budget = config.network.build_budget()

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task: the serving router's, in training the mean over both routers."""
        tokens = self.tokens(batch).fields
        passes = range(self.num_routers if self.training else 1)
        return torch.stack([self._logits(tokens, _Pass(router)) for router in passes]).mean(0)

    def loss(self, batch: Batch) -> Loss:
        """The labels' loss; with experts that of both routers, and the price of open gates.

        Parts, with experts: `serving` and `training` (the labels' losses by router, summed over
        tasks), `gates` (the weighted penalty) and `open_share` (of the serving gates; not in the
        total).

        Raises:
            ValueError: the batch has no labels.
        """
        tokens = self.tokens(batch).fields
        passes = [_Pass(router) for router in range(self.num_routers)]
        serving, *others = [ranking_loss(self._logits(tokens, run), batch) for run in passes]
        if self.budget is None:
            return serving
        (training,) = others
        routings = passes[0].routings
        parts = {
            "serving": serving.total,
            "training": training.total,
            "gates": self.budget(routings),
        }
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {**parts, **serving.parts, "open_share": open_share(routings)})

    def _logits(
        self, tokens: Float[Tensor, "batch tokens dim"], run: _Pass
    ) -> Float[Tensor, "batch tasks"]:
        return self.head(self.stack(tokens, run))
