"""Settings and parts that all models made of token layers have: tokens, connection, head."""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.tokens.fields import PerFieldTokens
from rankloom.layers.tokens.token_set import TokenSet
from rankloom.ranking.connections import Connection, IdentityConfig
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class PerField(Config):
    """One token for every field."""

    kind: Literal["per_field"] = "per_field"

    def build(self, num_fields: int, in_dim: int, dim: int) -> nn.Module:
        """What makes the tokens of `num_fields` vectors of width `in_dim`."""
        return PerFieldTokens(num_fields, in_dim, dim)


FieldTokens = Annotated[PerField, Field(discriminator="kind")]


class MeanPooling(Config):
    """The mean of the field tokens."""

    kind: Literal["mean"] = "mean"


class TokenNetwork(Config):
    """A model made of token layers: what goes in, how layers connect, and what comes out."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    dim: int = Field(64, gt=0)
    """Width of every token."""
    num_layers: int = Field(2, ge=1)
    """Layers."""
    tokens: FieldTokens = PerField()
    """How fields become tokens."""
    connection: Connection = IdentityConfig()
    """What lies between layers."""
    head: Network = Network(hidden=(256, 64))
    """The network above the pooled tokens."""

    def build_tokens(self, schema: Schema) -> "TokenInput":
        """The first part: from a batch to tokens."""
        return TokenInput(self, schema)

    def build_head(self, dim: int, num_tokens: int, num_tasks: int) -> nn.Module:
        """The last part: from [batch, num_tokens, dim] field tokens to logits."""
        return TokenHead(self.head, dim, num_tasks)


class TokenInput(nn.Module):
    """From a batch to tokens.

    Args:
        config: the model's settings.
        schema: the data.
    """

    num_events: int
    """Event tokens."""
    num_fields: int
    """Field tokens."""

    def __init__(self, config: TokenNetwork, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        num_fields = self.embedding.num_fields
        self.fields = config.tokens.build(num_fields, config.embedding_dim, config.dim)
        self.num_events = 0
        self.num_fields = num_fields

    def forward(self, batch: Batch) -> TokenSet:
        """The batch's tokens."""
        return TokenSet(self.fields(self.embedding(batch)))


class TokenHead(nn.Module):
    """Field tokens to logits: their mean, then a network.

    Args:
        network: the network's settings.
        dim: width of a token.
        num_tasks: logits.
    """

    def __init__(self, network: Network, dim: int, num_tasks: int) -> None:
        super().__init__()
        self.network = network.build_network(dim, out_features=num_tasks)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.network(x.mean(1))


class SequenceTokenNetwork(TokenNetwork):
    """A model that also reads events as tokens; the others read the mean of a sequence's events."""
