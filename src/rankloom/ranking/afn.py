"""AFN and AFN+: cross features whose orders are learned, in logarithmic space.

Source: Cheng et al., AAAI 2020, arXiv:1909.03276, sections 3 and 4.
Equations: y[j] = exp(sum_i w[i,j] ln |e[i]|) = prod_i |e[i]|^w[i,j], per dimension, for every
    logarithmic neuron j, with batch norm before the sum (per field) and after the exponential (per
    neuron); logits = MLP([y[1]; ...; y[N]]).
    AFN+: logits = w_1 AFN + w_2 MLP(e') + b, with e' embeddings of its own.
Differs from the paper: AFN+ trains everything through the loss of the mixture, as FuxiCTR does; the
    author's code gives each part a loss of its own and the mixture their detached logits.
    Magnitudes below `min_magnitude` are raised to 1e-5 as in FuxiCTR, which quotes the paper with
    1e-7 (the author's code: 1e-4); a unit below it gets no gradient. The sum has no bias, as in the
    equation and FuxiCTR; the author's code has one, whose scale the batch norm above takes away.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.mlp import linear
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class AFNConfig(Config):
    """Sizes of the logarithmic layer and of the networks."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    num_neurons: int = Field(1000, gt=0)
    """Logarithmic neurons: cross features, each with learned powers of all fields."""
    min_magnitude: float = Field(1e-5, gt=0)
    """Smallest magnitude of an embedding's unit that its logarithm sees."""
    network: Network = Network(hidden=(400,))
    """The network above the cross features."""
    deep: Network | None = None
    """The network beside it, over embeddings of its own (AFN+); none: AFN."""


class _LogarithmicLayer(nn.Module):
    """The cross features, side by side: [dimension 1 of all neurons; dimension 2 of all; ...]."""

    def __init__(self, num_fields: int, num_neurons: int, min_magnitude: float) -> None:
        super().__init__()
        self.min_magnitude = min_magnitude
        self.log_norm = nn.BatchNorm1d(num_fields)
        self.powers = linear(num_fields, num_neurons, bias=False)
        """w: [neurons, fields]."""
        self.exp_norm = nn.BatchNorm1d(num_neurons)

    def forward(self, vectors: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch width"]:
        dim = vectors.shape[2]
        # Always float32: bf16 rounds a logarithm of -10 by up to 2^-5, which the exponential turns
        # into 3 % of the product.
        with torch.autocast(vectors.device.type, enabled=False):
            # DIFF: another smallest magnitude than the paper's.
            magnitudes = vectors.to(self.powers.weight.dtype).abs().clamp(self.min_magnitude)
            logs = self.log_norm(magnitudes.log())
            # All dimensions of all rows are rows of one matrix product, and of one batch norm.
            sums = self.powers(logs.mT.flatten(0, 1))  # [batch * dim, neurons]
            crosses = self.exp_norm(sums.exp())
        return torch.unflatten(crosses, 0, (-1, dim)).flatten(1)  # [batch, dim * neurons]


class _DeepMixture(nn.Module):
    """AFN+: a learned mixture of given logits with those of a network on its own embeddings."""

    def __init__(self, schema: Schema, dim: int, network: Network) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, dim)
        self.network = network.build_network(self.embedding.width, out_features=schema.num_tasks)
        # It starts as the mean of both, as in the author's code.
        self.weight = nn.Parameter(torch.full((2, schema.num_tasks), 0.5))
        """[2, tasks]: of the given logits and of the network's."""
        self.bias = nn.Parameter(torch.zeros(schema.num_tasks))

    def forward(
        self, batch: Batch, logits: Float[Tensor, "batch tasks"]
    ) -> Float[Tensor, "batch tasks"]:
        deep = self.network(self.embedding(batch).flatten(1))
        # DIFF: the loss of the mixture trains both parts.
        return logits * self.weight[0] + deep * self.weight[1] + self.bias


class AFN(nn.Module):
    """Logarithmic neurons and a network above them; tasks share everything but the last layer."""

    def __init__(self, config: AFNConfig, schema: Schema) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.embedding = FieldEmbedding(schema, dim)
        self.crosses = _LogarithmicLayer(
            self.embedding.num_fields, config.num_neurons, config.min_magnitude
        )
        self.network = config.network.build_network(
            dim * config.num_neurons, out_features=schema.num_tasks
        )
        self.mixture = _DeepMixture(schema, dim, config.deep) if config.deep is not None else None

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        logits = self.network(self.crosses(self.embedding(batch)))
        if self.mixture is not None:
            logits = self.mixture(batch, logits)
        return logits
