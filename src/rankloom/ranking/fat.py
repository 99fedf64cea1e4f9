"""FAT: a Transformer over fields whose matrices and attention know which field a token is of.

Source: "From Scaling to Structured Expressivity", 2025, arXiv:2511.12081, by third-party code; the
    paper itself was not read.
Equations, with x[f] the token of field f:
    attention     s[i,j] = <q[i], k[j]> w[i,j] / sqrt(dim / heads), w a learned table, q[i] =
                  W_Q[i] x[i] and so on, z[i] = W_O sum_j softmax_j(s[i,j]) v[j]
    network       W_2[f] act(W_1[f] x)
    matrices      W[f] = sum over m in top-K of g(phi[f]) of alpha[f,m] B[m], alpha the softmax of
                  g(phi[f]) over the K bases selected, phi[f] the learned code of field f, for W_Q,
                  W_K, W_V, W_1 and W_2
    block         z = x + Attention(Norm(x)), x' = z + Network(Norm(z))
    logits        MLP(sum of the tokens)
Differs from the paper: tokens are linear in the embeddings, which may have another width; the norm
    is RMSNorm, and one stands before the sum. In `block.kind = "one_skip"`, z = Attention(x),
    x' = x + Network(Norm(z)), which is how one repository reads the block.
The paper does not say: whether w belongs to a layer (yes), to a head (no), how matrices and codes
    start (codes are standard normal, bases such that a mean of K of them is xavier-normal), whether
    the five matrices of a layer share bases and router g (no; phi is one for the whole model), what
    g is (linear), the activation (GELU), biases (none but the tokens'), W_O (all fields share one).
"""

import copy
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import linear
from rankloom.layers.norm import RMSNorm
from rankloom.ranking.connections import connect, input_norm
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import Pooling, SumPooling
from rankloom.schema import Schema


class TwoSkips(Config):
    """Attention and network, each with a norm before it and a skip around it."""

    kind: Literal["two_skips"] = "two_skips"

    def build(self, config: "FATConfig", num_fields: int) -> list[nn.Module]:
        """The sublayers of a layer."""
        # DIFF: RMSNorm for LayerNorm, as in all token models here.
        norms = [input_norm(config.connection, config.dim) for _ in range(2)]
        return [_Attention(config, num_fields, norms[0]), _Network(config, norms[1])]


class OneSkip(Config):
    """A normalised attention under the network, one skip around both."""

    kind: Literal["one_skip"] = "one_skip"

    def build(self, config: "FATConfig", num_fields: int) -> list[nn.Module]:
        """The sublayers of a layer: one."""
        attention = _Attention(config, num_fields, nn.Identity())
        # DIFF: RMSNorm for LayerNorm here too.
        return [_Chain(attention, _Network(config, RMSNorm(config.dim)))]


class FATConfig(TokenNetwork):
    """Sizes of the layers and of the bases that their matrices are made of."""

    num_heads: int = Field(4, gt=0)
    """Heads of every layer; divides `dim`."""
    expansion: int = Field(4, gt=0)
    """Width of the network's hidden layer, in widths of a token."""
    num_bases: int = Field(16, ge=2)
    """Matrices that the fields' matrices are mixed from, for each of a layer's five."""
    num_selected: int = Field(3, ge=2)
    """Bases in the mixture of a field; at most `num_bases`."""
    code_dim: int = Field(32, gt=0)
    """Width of a field's code."""
    pooling: Pooling = SumPooling()
    """How field tokens become one vector at the end."""
    block: Annotated[TwoSkips | OneSkip, Field(discriminator="kind")] = TwoSkips()
    """Where norms and skips stand: two_skips or one_skip."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights and of hidden units dropped in training."""


class _FieldMatrices(nn.Module):
    """A matrix for every field, mixed from the bases that its code selects."""

    def __init__(self, config: FATConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if config.num_selected > config.num_bases:
            raise ValueError(
                f"num_selected must be at most num_bases; got num_selected={config.num_selected}, "
                f"num_bases={config.num_bases}"
            )
        self.num_selected = config.num_selected
        self.router = linear(config.code_dim, config.num_bases, bias=False)
        self.bases = nn.Parameter(torch.empty(config.num_bases, in_dim, out_dim))
        """[bases, in_dim, out_dim]."""
        for base in self.bases.detach():
            # A mean of K independent matrices has a K-th of their variance.
            nn.init.xavier_normal_(base, gain=config.num_selected**0.5)

    def shares(self, codes: Float[Tensor, "fields code_dim"]) -> Float[Tensor, "fields bases"]:
        """What every base weighs in a field's matrix; zero where it is not selected."""
        scores = self.router(codes)
        top, selected = scores.topk(self.num_selected, dim=-1)
        # Weights are made in the scores' own type: autocast's softmax gives float32.
        weights = top.softmax(-1).to(scores.dtype)
        return torch.zeros_like(scores).scatter(-1, selected, weights)

    def forward(
        self, codes: Float[Tensor, "fields code_dim"]
    ) -> Float[Tensor, "fields in_dim out_dim"]:
        mixed = self.shares(codes) @ self.bases.flatten(1)  # [fields, in_dim * out_dim]
        return torch.unflatten(mixed, 1, self.bases.shape[1:])


class _StoredMatrices(nn.Module):
    """The matrices as they are, whatever the codes."""

    def __init__(self, matrices: Float[Tensor, "fields in_dim out_dim"]) -> None:
        super().__init__()
        self.register_buffer("matrices", matrices)
        self.matrices: Tensor

    def forward(
        self, codes: Float[Tensor, "fields code_dim"]
    ) -> Float[Tensor, "fields in_dim out_dim"]:
        return self.matrices


class _Attention(nn.Module):
    """Attention with matrices of each field's own and a weight for every pair of fields."""

    def __init__(self, config: FATConfig, num_fields: int, norm: nn.Module) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        if dim % heads:
            raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={heads}")
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.norm = norm
        self.query = _FieldMatrices(config, dim, dim)
        self.key = _FieldMatrices(config, dim, dim)
        self.value = _FieldMatrices(config, dim, dim)
        self.pair_weight = nn.Parameter(torch.ones(num_fields, num_fields))
        """[fields, fields]: row i scales what field i asks of every other."""
        self.dropout = Dropout(config.dropout)
        self.out = linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch fields dim"], codes: Float[Tensor, "fields code_dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        matrices = [self.query(codes), self.key(codes), self.value(codes)]
        projected = _by_field(self.norm(x), torch.cat(matrices, dim=-1))
        # [batch, fields, 3 * dim] to three times [batch, heads, fields, dim / heads]
        q, k, v = torch.unflatten(projected, -1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (self.scale * self.pair_weight)
        attended = self.dropout(scores.softmax(-1)) @ v
        return self.out(attended.transpose(1, 2).flatten(2))


class _Network(nn.Module):
    """A network with one hidden layer, its matrices of each field's own."""

    def __init__(self, config: FATConfig, norm: nn.Module) -> None:
        super().__init__()
        hidden = config.expansion * config.dim
        self.norm = norm
        self.expand = _FieldMatrices(config, config.dim, hidden)
        self.dropout = Dropout(config.dropout)
        self.reduce = _FieldMatrices(config, hidden, config.dim)

    def forward(
        self, x: Float[Tensor, "batch fields dim"], codes: Float[Tensor, "fields code_dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        hidden = functional.gelu(_by_field(self.norm(x), self.expand(codes)))
        return _by_field(self.dropout(hidden), self.reduce(codes))


class _Chain(nn.Module):
    """The network over the attention, nothing added between."""

    def __init__(self, attention: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.network = network

    def forward(
        self, x: Float[Tensor, "batch fields dim"], codes: Float[Tensor, "fields code_dim"]
    ) -> Float[Tensor, "batch fields dim"]:
        return self.network(self.attention(x, codes), codes)


class FAT(nn.Module):
    """Field-aware Transformer layers over field tokens, then their sum."""

    def __init__(self, config: FATConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_fields = self.tokens.num_fields
        self.codes = nn.Parameter(torch.randn(num_fields, config.code_dim))
        """[fields, code_dim]."""
        layers = [config.block.build(config, num_fields) for _ in range(config.num_layers)]
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_fields, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.head(self.stack(self.tokens(batch).x, self.codes))

    @torch.no_grad()
    def with_stored_matrices(self) -> "FAT":
        """A copy to score with: the matrices that every call would mix anew stand in it."""
        stored = copy.deepcopy(self).requires_grad_(False)
        for module in list(stored.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, _FieldMatrices):
                    module.add_module(name, _StoredMatrices(part(stored.codes)))
        return stored.eval()


def _by_field(
    x: Float[Tensor, "batch fields in_dim"], matrices: Float[Tensor, "fields in_dim out_dim"]
) -> Float[Tensor, "batch fields out_dim"]:
    """Every field's token through its matrix, in one batched product."""
    return torch.bmm(x.transpose(0, 1), matrices).transpose(0, 1)
