"""A causal Transformer over the tokens of a user's items: what the decoder-only generators share.

The sequence is START, then the tokens of every item, each id closed by END. The state after START
or after an item's END predicts the first token of the next item, the state after that token the
next one, and so on. One pass over a user's sequence gives the loss of every token of every item.

Positions are learned: the place of the item in the window, counted from its oldest item, and the
place of the token in its item. A test history has one or two items more than any training row of
that user had. Windows end at `max_length` items, so that no place is new as soon as some training
row fills a window; else the longest users of all are told by a place that was not trained.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.causal_transformer import BeamCache
from rankloom.layers.dropout import Dropout
from rankloom.layers.linear_cross_entropy import linear_cross_entropy
from rankloom.retrieval.generators.causal import CausalConfig
from rankloom.retrieval.generators.id_likelihood import id_log_likelihood
from rankloom.retrieval.generators.inputs import (
    INIT_STD,
    UserEmbedding,
    newest_items,
    schema_ids,
)
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.history_tokens import IdTokens, TokenizedHistories, pack_tokens
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import END, PADDING, START


class TokenDecoderConfig(CausalConfig):
    """Sizes, and what the decoder reads."""

    max_length: int = Field(50, ge=1)
    """Items of a history that are read: the newest ones."""
    num_user_tokens: int = Field(0, ge=0)
    """Vectors shared by the users, added to START; 0: the user is not read."""
    temperature: float = Field(1.0, gt=0)
    """What logits are divided by, in training and in decoding."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target's probability that is spread over all tokens in training."""
    first_item: bool = False
    """Whether the first item of a sequence is predicted too, from START alone."""


@dataclass(frozen=True)
class DecoderState:
    """What is kept between two steps."""

    cache: BeamCache
    """Keys and values."""
    place: Int[Tensor, " batch"]
    """Place of the item that is being written."""


class TokenDecoder(nn.Module):
    """Embeddings, Transformer, and logits tied to the embeddings.

    Args:
        config: sizes.
        schema: the catalogue, with ids.
        model: name of the model, for errors.
        item_part: item numbers [batch, seq] to vectors [batch, seq, dim] that are added to the END
            of each item of the history. Only END can carry them: the earlier tokens of an item are
            read while the later ones are predicted, and its vector would tell them.

    Raises:
        ValueError: the schema has no ids, or `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        config: TokenDecoderConfig,
        schema: ItemSchema,
        *,
        model: str,
        item_part: nn.Module | None = None,
    ) -> None:
        super().__init__()
        ids = schema_ids(schema, model)
        self.max_length = config.max_length
        # DIFF: LETTER's temperature is part of the loss alone, here of the logits.
        self.temperature = config.temperature
        self.label_smoothing = config.label_smoothing
        self.first_item = config.first_item
        self.history = IdTokens(ids)
        self.token = nn.Embedding(ids.vocabulary_size, config.dim)
        self.place = nn.Embedding(config.max_length + 2, config.dim)
        """0 for START, then the items of the window, then the item that is being written."""
        self.level = nn.Embedding(self.history.max_tokens, config.dim)
        self.user: UserEmbedding | None = None
        if config.num_user_tokens:
            self.user = UserEmbedding(config.num_user_tokens, config.dim)
        self.item_part = item_part
        self.transformer = config.build_transformer()
        self.dropout = Dropout(config.dropout)
        for table in (self.token, self.place, self.level):
            nn.init.normal_(table.weight, std=INIT_STD)

    def forward(
        self, batch: HistoryBatch, last: Int[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], TokenizedHistories]:
        """Teacher-forced states over each history and one item after it.

        Args:
            batch: histories, no longer than the window.
            last: tokens of the item after each.

        Returns:
            The state that predicts each token, and the tokens.
        """
        rows = self.history.of_items(batch.items)  # [batch, seq, width]
        rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)
        place = batch.lengths[:, None, None].expand(-1, 1, rows.shape[2])
        written = pack_tokens(rows.scatter(1, place, last.unsqueeze(1)))
        read = self._embed(batch, written)[:, :-1]
        return self.transformer(read), written

    def train_states(
        self, batch: HistoryBatch
    ) -> tuple[Float[Tensor, "labels dim"], Int[Tensor, " labels"], Int[Tensor, " labels"]]:
        """States of one pass over whole sequences, where a token is to be predicted.

        Of a row longer than the window the newest items are read, and their targets learned.

        Args:
            batch: rows whose targets are the items that follow, 0 where none is to be predicted.

        Returns:
            The states, the token to be predicted of each, and the number of the item it is of.

        Raises:
            ValueError: there are no targets, or a target is not the item that follows.
        """
        if batch.targets is None:
            raise ValueError("a generator learns from batches with targets; got targets=None")
        batch = newest_items(batch, self.max_length)
        items, targets, lengths = batch.items, batch.targets, batch.lengths.unsqueeze(1)
        assert targets is not None
        final = targets.gather(1, (lengths - 1).clamp(min=0)) * (lengths > 0)  # [batch, 1]
        sequence = functional.pad(items, (0, 1)).scatter(1, lengths, final)  # [batch, seq + 1]
        if not ((targets == 0) | (targets == sequence[:, 1:])).all():
            raise ValueError("targets must be the items that follow in the row, or 0")
        hidden, written = self(batch, self.history.of_items(final.squeeze(1)))
        first = sequence[:, :1] if self.first_item else torch.zeros_like(sequence[:, :1])
        wanted = torch.cat([first, targets], dim=1).gather(1, written.items)  # [batch, tokens]
        places = ((wanted > 0) & (written.tokens != PADDING)).flatten().nonzero().squeeze(1)
        return (
            hidden.flatten(0, 1).index_select(0, places),
            written.tokens.flatten().index_select(0, places),
            wanted.flatten().index_select(0, places),
        )

    def start(self, batch: HistoryBatch) -> tuple[Float[Tensor, "batch 1 dim"], DecoderState]:
        """Encode the histories once; as `Generator.start`."""
        batch = newest_items(batch, self.max_length)
        written = self.history.encode(batch.items)
        # START is real in every row, so that an empty history has something to be read.
        mask = functional.pad(written.tokens != PADDING, (1, 0), value=True)
        hidden, cache = self.transformer.encode(self._embed(batch, written), mask)
        last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last), DecoderState(cache, batch.lengths + 1)

    def advance(
        self,
        state: DecoderState,
        tokens: Int[Tensor, "batch beams"],
        parents: Int[Tensor, "batch beams"],
    ) -> tuple[Float[Tensor, "batch beams dim"], DecoderState]:
        """One step; as `Generator.advance`."""
        # A beam that has written END is fed padding, beyond the last level at most.
        step = min(state.cache.num_steps, self.history.max_tokens - 1)
        position = self.place(state.place) + self.level.weight[step]
        x = self.token(tokens) + position.unsqueeze(1)
        hidden, cache = self.transformer.step(self.dropout(x), state.cache, parents)
        return hidden, DecoderState(cache, state.place)

    def cross_entropy(
        self, states: Float[Tensor, "labels dim"], labels: Int[Tensor, " labels"]
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of what `train_states` gives, over all tokens; 0 of none."""
        return linear_cross_entropy(
            states / self.temperature,
            self.token.weight,
            labels,
            label_smoothing=self.label_smoothing,
        )

    def logits(self, hidden: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape vocabulary"]:
        """Logits of all tokens."""
        return functional.linear(hidden / self.temperature, self.token.weight)

    def logits_of(
        self, hidden: Float[Tensor, "*shape dim"], tokens: Int[Tensor, "*shape choices"]
    ) -> Float[Tensor, "*shape choices"]:
        """Logits of the given tokens only."""
        return (self.token(tokens) @ (hidden / self.temperature).unsqueeze(-1)).squeeze(-1)

    def forced_logits(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices width vocabulary"]:
        """Logits at every token of given ids after each history, each by a pass of its own."""
        batch = newest_items(batch, self.max_length)
        count, width = tokens.shape[1:]
        repeated = HistoryBatch(
            batch.items.repeat_interleave(count, 0),
            users=None if batch.users is None else batch.users.repeat_interleave(count, 0),
        )
        hidden, written = self(repeated, tokens.flatten(0, 1))
        begin = ((written.items < repeated.lengths[:, None]) & (written.tokens > 0)).sum(1)
        columns = begin[:, None] + torch.arange(width, device=tokens.device)
        columns = columns.clamp(max=max(hidden.shape[1] - 1, 0))  # beyond a short id
        chosen = hidden.gather(1, columns.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        return torch.unflatten(self.logits(chosen), 0, tokens.shape[:2])

    def id_log_likelihood(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices"]:
        """Log-likelihood of given ids after each history, without any cache: slow, to compare."""
        return id_log_likelihood(self.forced_logits(batch, tokens), tokens)

    def _embed(
        self, batch: HistoryBatch, written: TokenizedHistories
    ) -> Float[Tensor, "batch tokens_plus_one dim"]:
        """START and the tokens."""
        x = self.token(written.tokens) + self.place(written.items + 1) + self.level(written.places)
        if self.item_part is not None:
            # [batch, seq + 1, dim]: the item that is being written has no END that is read.
            vectors = functional.pad(self.item_part(batch.items), (0, 0, 0, 1))
            index = written.items.unsqueeze(2).expand(-1, -1, x.shape[2])
            x = x + vectors.gather(1, index) * (written.tokens == END).unsqueeze(2)
        first = (self.token.weight[START] + self.place.weight[0]).expand(batch.size, -1)
        if self.user is not None:
            first = first + self.user(batch.users, batch.size)
        return self.dropout(torch.cat([first.unsqueeze(1), x], dim=1))
