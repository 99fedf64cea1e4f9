"""Settings of what makes tokens of fields, and of what makes one vector of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.mlp import MLP
from rankloom.layers.tokens.fields import (
    AutoSplitTokens,
    GroupTokens,
    PerFieldTokens,
    SliceTokens,
    TokenActivation,
    WithGlobalToken,
    slice_width,
)
from rankloom.layers.tokens.pooling import JoinedTokens, MeanTokens, OneToken, SumTokens
from rankloom.ranking.network import Network


@dataclass(frozen=True)
class TokenSource:
    """What a field token is made of."""

    name: str
    """The token's name."""
    fields: tuple[str, ...]
    """Fields that it reads."""
    width: int
    """Width of what it reads."""


class FieldTokensConfig(Config):
    """What all ways from fields to tokens have in common."""

    bias_std: float = Field(0.0, ge=0)
    """Standard deviation that the vector of a token, the bias of what makes it, starts with.

    Layers normalise their tokens: while that vector is small, an id seen once weighs as much as one
    seen often, and L2 of tables shrinks nothing. Beside a vector of length it stays as small as it
    is. Which of both is better differs by data set (`docs/lab-notes.md`)."""
    global_token: bool = False
    """Put one more token, which a network of its own makes of all fields, before the others."""

    def build(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """What makes the tokens; it has `num_tokens`.

        Args:
            fields: names along the fields axis.
            in_dim: width of a field's vector.
            dim: width of a token.
        """
        tokens = self.build_plain(fields, in_dim, dim)
        if self.bias_std > 0:
            nn.init.normal_(cast(Tensor, tokens.biases), std=self.bias_std)
        if not self.global_token:
            return tokens
        network = MLP(len(fields) * in_dim, [dim], out_features=dim, activation="gelu")
        return WithGlobalToken(tokens, len(self.plain_sources(fields, in_dim)), network)

    def sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """What each token is made of, in the order of the tokens."""
        plain = self.plain_sources(fields, in_dim)
        if not self.global_token:
            return plain
        return [TokenSource("global", tuple(fields), len(fields) * in_dim), *plain]

    def build_plain(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """What makes the tokens, the global one excepted."""
        raise NotImplementedError

    def plain_sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """What each token is made of, the global one excepted."""
        raise NotImplementedError


class PerField(FieldTokensConfig):
    """One token for every field."""

    kind: Literal["per_field"] = "per_field"

    def build_plain(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """A linear layer for each field."""
        return PerFieldTokens(len(fields), in_dim, dim)

    def plain_sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """A field each."""
        return [TokenSource(name, (name,), in_dim) for name in fields]


class Groups(FieldTokensConfig):
    """One token for every named group of fields."""

    kind: Literal["groups"] = "groups"
    groups: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Names of the fields of each group, in the order of the tokens. The name of an entity or of a
    sequence group that is no field itself stands for all its members."""
    rest: Literal["error", "own_group"] = "error"
    """What becomes of fields that no group names: an error that lists them, or one more group."""
    hidden_dim: int | None = Field(None, gt=0)
    """Width of the hidden layer of each group's network; none: as wide as a token."""
    activation: TokenActivation = "gelu"
    """Its activation."""

    def build_plain(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """A network for each group."""
        places = {name: place for place, name in enumerate(fields)}
        groups = [[places[name] for name in names] for names in self.members(fields).values()]
        return GroupTokens(groups, in_dim, dim, self.hidden_dim or dim, activation=self.activation)

    def plain_sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """A group each."""
        return [
            TokenSource(name, names, len(names) * in_dim)
            for name, names in self.members(fields).items()
        ]

    def members(self, fields: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Every group's fields.

        Raises:
            ValueError: a name is no field, a field stands twice, or in no group.
        """
        members = {
            group: tuple(name for given in names for name in _named(given, group, fields))
            for group, names in self.groups.items()
        }
        listed = [name for names in members.values() for name in names]
        empty = [group for group, names in members.items() if not names]
        if empty:
            raise ValueError(f"groups without fields: {', '.join(empty)}")
        repeated = sorted({name for name in listed if listed.count(name) > 1})
        if repeated:
            raise ValueError(f"fields named more than once in groups: {', '.join(repeated)}")
        rest = tuple(name for name in fields if name not in listed)
        if rest and self.rest == "error":
            raise ValueError(
                f'fields in no group: {", ".join(rest)}; name them, or set rest = "own_group"'
            )
        if rest and "rest" in members:
            raise ValueError(f"a group is called rest, and {', '.join(rest)} need that name")
        return members | ({"rest": rest} if rest else {})


class AutoSplit(FieldTokensConfig):
    """A fixed number of tokens, cut from one network over all fields."""

    kind: Literal["auto_split"] = "auto_split"
    num_tokens: int = Field(16, gt=0)
    """Tokens."""
    network: Network = Network(hidden=(256,), activation="gelu")
    """The network, whose last layer of all tokens' width is added to it."""

    def build_plain(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """The network and the cut."""
        network = self.network.build_network(
            len(fields) * in_dim, out_features=self.num_tokens * dim
        )
        return AutoSplitTokens(network, self.num_tokens)

    def plain_sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """All fields each."""
        width = len(fields) * in_dim
        numbers = range(1, self.num_tokens + 1)
        return [TokenSource(f"split {number}", tuple(fields), width) for number in numbers]


class Slices(FieldTokensConfig):
    """A fixed number of tokens, each from an equal piece of all fields side by side."""

    kind: Literal["slices"] = "slices"
    num_tokens: int = Field(16, gt=0)
    """Tokens."""

    def build_plain(self, fields: Sequence[str], in_dim: int, dim: int) -> nn.Module:
        """The cut and a linear layer for each piece."""
        return SliceTokens(len(fields), in_dim, self.num_tokens, dim)

    def plain_sources(self, fields: Sequence[str], in_dim: int) -> list[TokenSource]:
        """The fields that a piece touches each."""
        width = len(fields) * in_dim
        piece = slice_width(width, self.num_tokens)
        found = []
        for number in range(self.num_tokens):
            first, end = number * piece, min((number + 1) * piece, width)
            names = tuple(fields[first // in_dim : -(-end // in_dim)])
            found.append(TokenSource(f"slice {number + 1}", names, end - first))
        return found


FieldTokens = Annotated[PerField | Groups | AutoSplit | Slices, Field(discriminator="kind")]


class MeanPooling(Config):
    """The mean of the field tokens."""

    kind: Literal["mean"] = "mean"

    def build(self, dim: int, num_tokens: int) -> MeanTokens:
        """What makes one vector of `num_tokens` tokens of width `dim`; it has `out_dim`."""
        return MeanTokens(dim)


class SumPooling(Config):
    """The sum of the field tokens."""

    kind: Literal["sum"] = "sum"

    def build(self, dim: int, num_tokens: int) -> SumTokens:
        """As `MeanPooling.build`."""
        return SumTokens(dim)


class ConcatPooling(Config):
    """The field tokens side by side."""

    kind: Literal["concat"] = "concat"

    def build(self, dim: int, num_tokens: int) -> JoinedTokens:
        """As `MeanPooling.build`."""
        return JoinedTokens(dim, num_tokens)


class OneTokenPooling(Config):
    """One field token, such as the global one."""

    kind: Literal["token"] = "token"
    index: int = 0
    """Its place among the field tokens; negative: from the end."""

    def build(self, dim: int, num_tokens: int) -> OneToken:
        """As `MeanPooling.build`.

        Raises:
            ValueError: there is no such token.
        """
        return OneToken(dim, num_tokens, self.index)


Pooling = Annotated[
    MeanPooling | SumPooling | ConcatPooling | OneTokenPooling, Field(discriminator="kind")
]


def _named(given: str, group: str, fields: Sequence[str]) -> list[str]:
    """The fields that a name in a group stands for."""
    if given in fields:
        return [given]
    members = [name for name in fields if name.startswith(f"{given}.")]
    if not members:
        raise ValueError(
            f"group {group}: no such field: {given}; the fields are {', '.join(fields)}"
        )
    return members
