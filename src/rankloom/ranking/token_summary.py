"""Which tokens a schema gives, to be looked at before anything is trained."""

from collections import Counter
from dataclasses import dataclass

from rankloom.layers.embedding import group_field_names
from rankloom.ranking.prefix_tokens import PrefixInput, PrefixTokens
from rankloom.ranking.token_network import SequenceTokenNetwork, TokenNetwork
from rankloom.schema import NUM_RESERVED, Schema, SequenceField


@dataclass(frozen=True)
class TokenRow:
    """A token, or the tokens of a sequence's events."""

    name: str
    """The field token's name, or the sequence's."""
    kind: str
    """`events`, or what kinds of fields it reads."""
    count: int
    """Tokens: 1, or the most events that are read of a row."""
    sources: tuple[str, ...]
    """Fields, or members of an event."""
    width: int
    """Width of what the token is made of."""


@dataclass(frozen=True)
class TokenSummary:
    """All tokens of a model on a schema."""

    rows: tuple[TokenRow, ...]
    """Events first, then fields, as the tokens stand."""
    num_events: int
    """Event tokens, padding and separators included."""
    num_fields: int
    """Field tokens."""
    order: str
    """How the events of several sequences follow each other; empty: there are no several."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a row."""
        return self.num_events + self.num_fields


def summarise_tokens(config: TokenNetwork | PrefixTokens, schema: Schema) -> TokenSummary:
    """The tokens of a model on a schema.

    Raises:
        ValueError: the schema and the settings do not fit, as when the model is built.
    """
    # Table sizes do not matter here, and real ones would be drawn at random for nothing.
    schema = schema.model_copy(update={"tables": dict.fromkeys(schema.tables, NUM_RESERVED)})
    tokens = config.build_tokens(schema)
    rows: list[TokenRow] = []
    order = ""
    if isinstance(config, SequenceTokenNetwork | PrefixTokens):
        groups = config.events.chosen(schema)
        rows = [_event_row(group, config.embedding_dim) for group in groups]
        order = config.events.order(groups) if len(groups) > 1 else ""
    if isinstance(tokens, PrefixInput) and tokens.compressed:
        names = tuple(row.name for row in rows)
        rows = [TokenRow(n, "events", c, names, config.dim) for n, c in tokens.sizes.items()]
    kinds = _kinds(schema)
    for source in config.tokens.sources(tokens.embedding.field_names, config.embedding_dim):
        counts = Counter(kinds[name] for name in source.fields)
        kind = ", ".join(
            name if len(source.fields) == 1 else f"{count} {name}" for name, count in counts.items()
        )
        rows.append(TokenRow(source.name, kind, 1, source.fields, source.width))
    return TokenSummary(tuple(rows), tokens.num_events, tokens.num_fields, order)


def _event_row(group: SequenceField, embedding_dim: int) -> TokenRow:
    members = (
        *(member.name for member in group.ids),
        *(member.name for member in group.numeric),
        *(member.name for member in group.vectors),
    )
    return TokenRow(group.name, "events", group.max_length, members, len(members) * embedding_dim)


def _kinds(schema: Schema) -> dict[str, str]:
    """What every field is."""
    kinds = {field.name: "categorical" for field in schema.categorical}
    kinds |= {field.name: "numeric" for field in schema.numeric}
    kinds |= {field.name: "vector" for field in schema.vectors}
    for group in schema.sequences:
        is_semantic_id = not group.ordered and group.ids[0].pooling == "sum"
        what = "semantic id" if is_semantic_id else "mean of a sequence"
        kinds |= dict.fromkeys(group_field_names(group), what)
    return kinds
