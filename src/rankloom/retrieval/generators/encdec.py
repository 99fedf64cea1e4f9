"""EncDec: TIGER's encoder-decoder, a T5 that reads a history's tokens and writes the next item's.

Source: Rajput et al., NeurIPS 2023, arXiv:2305.05065, on T5 (Raffel et al., JMLR 2020,
    arXiv:1910.10683); the temperature of LETTER (Wang et al., CIKM 2024, arXiv:2405.07314).
Equation: p(next item | history) = prod_l softmax(E h[l] / (sqrt(dim) temperature))[token l], h the
    decoder's states over START and the item's tokens before l, E the token embeddings, which
    encoder, decoder and output share. Loss: mean cross-entropy over the tokens of the targets.
Published: Beauty, Recall@5 .0454, NDCG@5 .0321, Recall@10 .0648, NDCG@10 .0384, with 4 + 4 layers,
    6 heads of width 64, dim 128, hidden 1024, 2,000 user tokens, 20 items.
Differs from the paper: START stands before the history, so that an empty one can be read; the user
    is added to START where the paper has a token of its own; the user is off by default, as without
    it the paper's Recall@10 is .0646. LETTER uses its temperature in the loss alone; here it also
    divides the logits that are decoded.
The paper does not say: how users are hashed into user tokens; here by their number's remainder.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.beam_attention import follow_parents
from rankloom.layers.causal_transformer import KeysValues
from rankloom.layers.dropout import Dropout
from rankloom.layers.linear_cross_entropy import linear_cross_entropy
from rankloom.layers.norm import RMSNorm
from rankloom.layers.t5 import EPS, BucketBias, T5DecoderLayer, T5EncoderLayer
from rankloom.protocols import Loss
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.id_likelihood import id_log_likelihood
from rankloom.retrieval.generators.inputs import UserEmbedding, newest_items, schema_ids
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.history_tokens import HistoryTokensConfig, IdTokensConfig
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import PADDING, START


class EncDecConfig(Config):
    """Sizes, by default those of the paper, and what the encoder reads."""

    dim: int = Field(128, gt=0)
    """Width of a position."""
    num_layers: int = Field(4, ge=1)
    """Layers of the encoder, and as many of the decoder."""
    num_heads: int = Field(6, ge=1)
    """Heads of every layer."""
    head_dim: int = Field(64, gt=0)
    """Width of a head; heads and width need not make `dim`."""
    hidden_dim: int = Field(1024, gt=0)
    """Width of the networks' hidden layer."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of units and of attention weights dropped in training."""
    num_buckets: int = Field(32, ge=4)
    """Buckets of distances between positions."""
    max_distance: int = Field(128, gt=1)
    """All distances from here on share a bucket; more than half of `num_buckets`."""
    max_length: int = Field(20, ge=1)
    """Items of a history that are read: the newest ones."""
    num_user_tokens: int = Field(0, ge=0)
    """Vectors shared by the users, added to START; 0: the user is not read."""
    temperature: float = Field(1.0, gt=0)
    """What logits are divided by, in training and in decoding."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target's probability that is spread over all tokens in training."""
    history: HistoryTokensConfig = IdTokensConfig()
    """How the history is written; the targets are always the items' ids."""
    adapters: LowRankAdapters = LowRankAdapters()
    """CapsID's adapters of the second stage: corrections by item vectors. Off by default."""


@dataclass(frozen=True)
class EncDecState:
    """What is kept between two steps."""

    context: tuple[KeysValues, ...]
    """Keys and values of the encoder's output for every decoder layer, without an axis of beams."""
    mask: Bool[Tensor, "batch 1 1 seq"]
    """True at the encoder's real positions."""
    own: Float[Tensor, "steps batch beams layers 2 heads head_dim"]
    """Keys and values of the beams' own steps, all layers."""


class EncDec(nn.Module):
    """T5 over tokens of items.

    Raises:
        ValueError: the schema has no ids, or none of the vectors that adapters need; or
            `max_distance` is too small for the buckets.
    """

    training_rows: Literal["users", "prefixes"] = "prefixes"
    """One history with the item after it."""

    def __init__(self, config: EncDecConfig, schema: ItemSchema) -> None:
        super().__init__()
        ids = schema_ids(schema, "encdec")
        if config.max_distance <= config.num_buckets // 2:
            raise ValueError(
                "max_distance must exceed half of num_buckets; got "
                f"max_distance={config.max_distance}, num_buckets={config.num_buckets}"
            )
        self.max_length = config.max_length
        self.label_smoothing = config.label_smoothing
        # DIFF: LETTER's temperature is part of the loss alone, here of the logits.
        self.scale = config.dim**-0.5 / config.temperature
        self.history = config.history.build(ids)
        self.register_buffer("target_tokens", ids.token_table(), persistent=False)
        self.target_tokens: Tensor
        self.token = nn.Embedding(ids.vocabulary_size, config.dim)  # standard deviation 1, as T5
        self.user: UserEmbedding | None = None
        if config.num_user_tokens:
            self.user = UserEmbedding(config.num_user_tokens, config.dim, init_std=1.0)
        self.adapter = config.adapters.build(config.dim, schema)
        sizes = (config.dim, config.num_heads, config.head_dim, config.hidden_dim, config.dropout)
        self.encoder = nn.ModuleList(T5EncoderLayer(*sizes) for _ in range(config.num_layers))
        self.decoder = nn.ModuleList(T5DecoderLayer(*sizes) for _ in range(config.num_layers))
        buckets = (config.num_heads, config.num_buckets, config.max_distance)
        std = config.dim**-0.5
        self.encoder_bias = BucketBias(*buckets, both_ways=True, init_std=std)
        self.decoder_bias = BucketBias(*buckets, both_ways=False, init_std=std)
        self.encoder_norm = RMSNorm(config.dim, eps=EPS)
        self.decoder_norm = RMSNorm(config.dim, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def loss(self, batch: HistoryBatch) -> Loss:
        """Mean cross-entropy over the tokens of the items after each row's last position.

        Raises:
            ValueError: there are no targets.
        """
        if batch.targets is None:
            raise ValueError("a generator learns from batches with targets; got targets=None")
        last = (batch.lengths - 1).clamp(min=0).unsqueeze(1)
        targets = batch.targets.gather(1, last).squeeze(1)  # [batch]
        tokens = self.target_tokens[targets]  # [batch, width]
        tokens = tokens[:, : max(1, int((tokens != PADDING).sum(1).amax())) if len(tokens) else 1]
        hidden = self._decode(tokens, *self._encode(batch))
        real = (tokens != PADDING).flatten().nonzero().squeeze(1)
        states = hidden.flatten(0, 1).index_select(0, real)
        labels = tokens.flatten().index_select(0, real)
        return Loss(
            linear_cross_entropy(
                states * self.scale,
                self.token.weight,
                labels,
                label_smoothing=self.label_smoothing,
            )
        )

    def start(self, batch: HistoryBatch) -> tuple[Float[Tensor, "batch 1 dim"], EncDecState]:
        """Run the encoder once and make its keys and values once; as `Generator.start`."""
        context, mask = self._encode(batch)
        keys = context[0][0]
        own = keys.new_empty(0, batch.size, 1, len(context), 2, keys.shape[1], keys.shape[3])
        tokens = torch.full((batch.size, 1), START, device=mask.device)
        return self.advance(EncDecState(context, mask, own), tokens, torch.zeros_like(tokens))

    @torch.no_grad()
    def advance(
        self,
        state: EncDecState,
        tokens: Int[Tensor, "batch beams"],
        parents: Int[Tensor, "batch beams"],
    ) -> tuple[Float[Tensor, "batch beams dim"], EncDecState]:
        """One step, without gradients; as `Generator.advance`."""
        own = follow_parents(state.own, parents)
        bias = self.decoder_bias(len(own), first_query=len(own) - 1)  # [heads, 1, steps]
        x = self.dropout(self.token(tokens))
        for place, layer in enumerate(self.decoder):
            step = cast(T5DecoderLayer, layer).step
            x = step(x, own[:, :, :, place], bias, state.context[place], state.mask)
        return self.dropout(self.decoder_norm(x)), EncDecState(state.context, state.mask, own)

    def logits(self, hidden: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape vocabulary"]:
        """Logits of all tokens of the next position."""
        return functional.linear(hidden * self.scale, self.token.weight)

    def logits_of(
        self, hidden: Float[Tensor, "*shape dim"], tokens: Int[Tensor, "*shape choices"]
    ) -> Float[Tensor, "*shape choices"]:
        """Logits of the given tokens only."""
        return (self.token(tokens) @ (hidden * self.scale).unsqueeze(-1)).squeeze(-1)

    def forced_logits(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices width vocabulary"]:
        """Logits at every token of given ids after each history, without any cache: slow."""
        context, mask = self._encode(batch)
        count = tokens.shape[1]
        repeated = tuple(
            (keys.repeat_interleave(count, 0), values.repeat_interleave(count, 0))
            for keys, values in context
        )
        hidden = self._decode(tokens.flatten(0, 1), repeated, mask.repeat_interleave(count, 0))
        return torch.unflatten(self.logits(hidden), 0, tokens.shape[:2])

    def id_log_likelihood(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices"]:
        """Log-likelihood of given ids after each history, without any cache: slow, to compare."""
        return id_log_likelihood(self.forced_logits(batch, tokens), tokens)

    def _encode(
        self, batch: HistoryBatch
    ) -> tuple[tuple[KeysValues, ...], Bool[Tensor, "batch 1 1 seq"]]:
        """Keys and values of the history for every decoder layer, and which are real."""
        batch = newest_items(batch, self.max_length)
        written = self.history.encode(batch.items)
        x = self.token(written.tokens)  # [batch, tokens, dim]
        if self.adapter is not None:
            index = written.items.unsqueeze(2).expand(-1, -1, x.shape[2])
            x = x + self.adapter(batch.items).gather(1, index)
        # DIFF: START is always there, and the user is added to it.
        first = self.token.weight[START].expand(batch.size, -1)
        if self.user is not None:
            first = first + self.user(batch.users, batch.size)
        x = self.dropout(torch.cat([first.unsqueeze(1), x], dim=1))
        real = functional.pad(written.tokens != PADDING, (1, 0), value=True)[:, None, None]
        mask = self.encoder_bias(x.shape[1]).masked_fill(~real, -torch.inf)
        for layer in self.encoder:
            x = layer(x, mask)
        x = self.dropout(self.encoder_norm(x))
        layers = [cast(T5DecoderLayer, layer) for layer in self.decoder]
        return tuple(layer.cross.keys_values(x) for layer in layers), real

    def _decode(
        self,
        tokens: Int[Tensor, "batch width"],
        context: tuple[KeysValues, ...],
        mask: Bool[Tensor, "batch 1 1 seq"],
    ) -> Float[Tensor, "batch width dim"]:
        """Teacher-forced states that predict the tokens."""
        width = tokens.shape[1]
        read = functional.pad(tokens[:, :-1], (1, 0), value=START)
        later = torch.ones(width, width, dtype=torch.bool, device=tokens.device).triu(1)
        bias = self.decoder_bias(width).masked_fill(later, -torch.inf).unsqueeze(0)
        x = self.dropout(self.token(read))
        for layer, keys_values in zip(self.decoder, context, strict=True):
            x = layer(x, bias, keys_values, mask)
        return self.dropout(self.decoder_norm(x))
