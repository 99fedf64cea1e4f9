"""UniMixer and UniMixer-Lite: token mixing by learned, nearly doubly stochastic matrices.

Source: arXiv:2604.00590, 2026, as public notes on it and a third party's code describe it.
Equations: tokens are linear in equal slices of all embeddings side by side;
    with x[1], ..., x[G] the blocks of all tokens laid side by side, `block_size` units each,
    mixing   Y = W_G [x[i] W_B[i]; i = 1, ..., G]
    W        Sinkhorn(exp((V + V^T) / (2 temperature))), for W_G and for every W_B
    network  W_down[t] (SiLU(W_gate[t] y + b) * (W_up[t] y + b)) + b, of each token's own
    block    f(x) = network(mixing(x)), between layers a Siamese norm
    Lite     V_B[i] = sum_l w[i,l] Z[l], V_G = A B of rank r
    With an identity in place of W_B and a permutation of blocks in place of W_G the mixing is
    RankMixer's.
Differs from the paper: the temperature moves with every forward pass in training.
The paper does not say, as far as the notes go: whether tokens skip the mixing within a block (here
    not; `inner_skip`); how small the starting V are (as in the code), or those without Sinkhorn
    (xavier-normal); whether the matrices of Lite are symmetric too, and made by Sinkhorn (here they
    are); what `block_size` is, how the output is pooled (the mean).
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.token_mlp import TokenSwiGLU
from rankloom.ranking.connections import Connection, SiameseNormConfig, connect, input_norm
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import FieldTokens, Slices
from rankloom.ranking.unimixer_matrices import (
    FullMatrix,
    GlobalMatrix,
    LocalMatrices,
    Matrices,
    OwnMatrices,
    SinkhornMatrices,
)
from rankloom.schema import Schema


class UniMixerConfig(TokenNetwork):
    """Sizes of the blocks, and what their mixing matrices are made of."""

    tokens: FieldTokens = Slices()
    """How fields become tokens."""
    connection: Connection = SiameseNormConfig()
    """What lies between layers."""
    block_size: int = Field(32, ge=1)
    """Units of a block, within which one matrix mixes; divides tokens * dim."""
    local_matrices: LocalMatrices = OwnMatrices()
    """The matrices within blocks: own, shared or bases."""
    global_matrix: GlobalMatrix = FullMatrix()
    """The matrix between blocks: full or low_rank."""
    matrices: Matrices = SinkhornMatrices()
    """What the matrices may be: sinkhorn or free."""
    inner_skip: bool = False
    """Whether tokens skip the mixing, too, on their way to their networks."""
    expansion: int = Field(4, gt=0)
    """Width of a network's hidden layer, in widths of a token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""

    def build_layer(self, num_tokens: int) -> list[nn.Module]:
        """The sublayers of one layer over `num_tokens` tokens."""
        mixing = UniMixing(self, num_tokens)
        hidden = self.expansion * self.dim
        network = TokenSwiGLU(num_tokens, self.dim, hidden, dropout=self.dropout)
        norm = input_norm(self.connection, self.dim)
        if not self.inner_skip:
            return [nn.Sequential(norm, mixing, network)]
        network_norm = input_norm(self.connection, self.dim)
        return [nn.Sequential(norm, mixing), nn.Sequential(network_norm, network)]


class UniMixing(nn.Module):
    """All units of a row's tokens, mixed within blocks, then between them.

    Args:
        config: the model's settings.
        num_tokens: tokens.

    Raises:
        ValueError: blocks of `block_size` do not fill the tokens.
    """

    def __init__(self, config: UniMixerConfig, num_tokens: int) -> None:
        super().__init__()
        size, width = config.block_size, num_tokens * config.dim
        if width % size:
            sizes = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
            raise ValueError(
                f"block_size must divide tokens * dim; got block_size={size}, {num_tokens} tokens, "
                f"dim={config.dim}; sizes that do: {sizes}"
            )
        self.shape = (num_tokens, config.dim)
        self.blocks = (width // size, size)
        local_std = config.matrices.starting_std(size)
        global_std = config.matrices.starting_std(width // size)
        self.local_matrices = config.local_matrices.build(*self.blocks, local_std)
        self.global_matrix = config.global_matrix.build(width // size, global_std)
        self.matrices = config.matrices.build()

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The mixed tokens."""
        within, between = self.matrices(self.local_matrices(), self.global_matrix())
        blocks = torch.unflatten(x.flatten(1), 1, self.blocks)
        blocks = blocks.transpose(0, 1)  # [blocks, batch, size]
        mixed = torch.bmm(blocks, within.to(x.dtype).expand(len(blocks), -1, -1))
        # All rows' blocks side by side: one matrix product, whatever the size of the batch.
        met = between[0].to(mixed.dtype) @ mixed.flatten(1)  # [blocks, batch * size]
        mixed = met.view_as(mixed).transpose(0, 1)  # [batch, blocks, size]
        # The copy that flattening makes of several rows, but of one row too, as export wants it.
        mixed = mixed.clone(memory_format=torch.contiguous_format)
        return torch.unflatten(mixed.flatten(1), 1, self.shape)


class UniMixer(nn.Module):
    """Mixing and per-token networks over the fields' tokens."""

    def __init__(self, config: UniMixerConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_tokens = self.tokens.num_fields
        layers = [config.build_layer(num_tokens) for _ in range(config.num_layers)]
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_tokens, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.head(self.stack(self.tokens(batch).x))
