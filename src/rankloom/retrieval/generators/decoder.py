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

from jaxtyping import Float, Int
from torch import Tensor

from rankloom.protocols import Loss
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.token_decoder import (
    TokenDecoder,
    TokenDecoderConfig,
)
from rankloom.retrieval.generators.token_generator import TokenGenerator
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema


class DecoderConfig(TokenDecoderConfig):
    """Sizes, and what the decoder reads."""

    adapters: LowRankAdapters = LowRankAdapters()
    """CapsID's adapters of the second stage: corrections by item vectors. Off by default."""


class Decoder(TokenGenerator):
    """The default generator.

    Raises:
        ValueError: the schema has no ids, or none of the vectors that adapters need; or `num_heads`
            does not divide `dim`.
    """

    def __init__(self, config: DecoderConfig, schema: ItemSchema) -> None:
        adapter = config.adapters.build(config.dim, schema)
        super().__init__(TokenDecoder(config, schema, model="decoder", item_part=adapter))

    def loss(self, batch: HistoryBatch) -> Loss:
        """Mean cross-entropy over the tokens of all targets.

        Raises:
            ValueError: there are no targets, or a target is not the item that follows.
        """
        states, labels, _ = self.tokens.train_states(batch)
        return Loss(self.tokens.cross_entropy(states, labels))

    def forced_logits(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices width vocabulary"]:
        """Logits at every token of given ids after each history, without any cache: slow."""
        return self.tokens.forced_logits(batch, tokens)
