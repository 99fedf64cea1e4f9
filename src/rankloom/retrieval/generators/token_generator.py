"""What generators over a `TokenDecoder` share: decoding is that of their tokens."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.retrieval.generators.token_decoder import DecoderState, TokenDecoder
from rankloom.retrieval.histories import HistoryBatch


class TokenGenerator(nn.Module):
    """A generator whose ids come from `tokens`.

    Args:
        tokens: the decoder.
    """

    training_rows: Literal["users", "prefixes"] = "users"
    """Whole sequences, with a target at each position."""

    def __init__(self, tokens: TokenDecoder) -> None:
        super().__init__()
        self.tokens = tokens

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

    def id_log_likelihood(
        self, batch: HistoryBatch, tokens: Int[Tensor, "batch choices width"]
    ) -> Float[Tensor, "batch choices"]:
        """Log-likelihood of given ids after each history, without any cache: slow, to compare."""
        return self.tokens.id_log_likelihood(batch, tokens)
