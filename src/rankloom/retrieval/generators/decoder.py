"""Decoder: a causal Transformer over a user's item tokens, trained at all positions at once.

Source: the generative formulation of TIGER (Rajput et al., NeurIPS 2023, arXiv:2305.05065) on a
    decoder-only Transformer; the temperature of LETTER (Wang et al., CIKM 2024, arXiv:2405.07314).
Equation: p(next item | history) = prod_l softmax(E h[l] / temperature)[token l], h[l] the state
    after START, the history's tokens and the item's tokens before l; E the token embeddings, tied.
    Loss: mean cross-entropy over all tokens of all target items, END included.
Differs from the papers: no encoder, so that one pass over a sequence trains all its positions where
    TIGER takes one pass for each; pre-norm layers with RMSNorm and SwiGLU by default. LETTER uses
    its temperature in the loss alone; here it also divides the logits that are decoded, so that the
    score of an item is the likelihood that was trained.
The papers do not say: sizes of a decoder-only model; here those that a processor trains in minutes.
"""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.protocols import Loss
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.token_decoder import (
    DecoderState,
    TokenDecoder,
    TokenDecoderConfig,
)
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema


class DecoderConfig(TokenDecoderConfig):
    """Sizes, and what the decoder reads."""

    adapters: LowRankAdapters = LowRankAdapters()
    """CapsID's adapters of the second stage: corrections by item vectors. Off by default."""


class Decoder(nn.Module):
    """The default generator.

    Raises:
        ValueError: the schema has no ids, or none of the vectors that adapters need; or `num_heads`
            does not divide `dim`.
    """

    training_rows: Literal["users", "prefixes"] = "users"
    """Whole sequences, with a target at each position."""

    def __init__(self, config: DecoderConfig, schema: ItemSchema) -> None:
        super().__init__()
        adapter = config.adapters.build(config.dim, schema)
        self.tokens = TokenDecoder(config, schema, model="decoder", item_part=adapter)

    def loss(self, batch: HistoryBatch) -> Loss:
        """Mean cross-entropy over the tokens of all targets.

        Raises:
            ValueError: there are no targets, or a target is not the item that follows.
        """
        states, labels, _ = self.tokens.train_states(batch)
        return Loss(self.tokens.cross_entropy(states, labels))

    def start(self, batch: HistoryBatch) -> tuple[Float[Tensor, "batch 1 dim"], DecoderState]:
        """As `Generator.start`."""
        return self.tokens.start(batch)

    def advance(
        self,
        state: DecoderState,
        tokens: Int[Tensor, "batch beams"],
        parents: Int[Tensor, "batch beams"],
    ) -> tuple[Float[Tensor, "batch beams dim"], DecoderState]:
        """As `Generator.advance`."""
        return self.tokens.advance(state, tokens, parents)

    def logits(self, hidden: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape vocabulary"]:
        """Logits of all tokens of the next position."""
        return self.tokens.logits(hidden)

    def logits_of(
        self, hidden: Float[Tensor, "*shape dim"], tokens: Int[Tensor, "*shape choices"]
    ) -> Float[Tensor, "*shape choices"]:
        """Logits of the given tokens only."""
        return self.tokens.logits_of(hidden, tokens)

    def forced_logits(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices width vocabulary"]:
        """Logits at every token of given ids after each history, without any cache: slow."""
        return self.tokens.forced_logits(batch, tokens)

    def id_log_likelihood(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices"]:
        """Log-likelihood of given ids after each history, without any cache: slow, to compare."""
        return self.tokens.id_log_likelihood(batch, tokens)
