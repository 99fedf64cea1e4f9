"""What training, decoding and evaluation ask of tokenizers, generators and item scorers."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.protocols import Loss
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.retrieval.semantic_ids import SemanticIds


@dataclass(frozen=True)
class TokenizerItems:
    """What a tokenizer may know of the items. Row i is of item number i + 1."""

    vectors: Float[Tensor, "items width"]
    """float32 item vectors."""
    attributes: Int[Tensor, "items fields"] | None = None
    """int64 side fields such as category and brand, as numbers from 1; 0: missing."""
    attribute_names: tuple[str, ...] = ()
    """Names of the side fields."""
    histories: Histories | None = None
    """Sequences to learn from: the training part alone."""
    collaborative: Float[Tensor, "items other"] | None = None
    """float32 item vectors learned from interactions (LETTER)."""

    @property
    def num_items(self) -> int:
        """Items."""
        return self.vectors.shape[0]


@dataclass(frozen=True)
class Assignment:
    """Codes that a tokenizer gives to vectors, with what it knows of them."""

    codes: npt.NDArray[np.int32]
    """[items, levels] from 0; -1 after an id's end."""
    reconstruction: Float[Tensor, "items width"] | None = None
    """What the codes alone say of the vector, in the tokenizer's own space; None: nothing."""
    target: Float[Tensor, "items width"] | None = None
    """The vector that `reconstruction` is to be compared with, in that space."""
    confidence: Float[Tensor, "items levels"] | None = None
    """How sure each code is, in [0, 1], or its margin over the second best code."""
    stopped_by: npt.NDArray[np.int8] | None = None
    """[items] why the id ended; names in `stop_reasons`."""
    stop_reasons: tuple[str, ...] = ()
    """Names of the numbers in `stopped_by`."""
    alternatives: npt.NDArray[np.int32] | None = None
    """[items, levels] codes of all levels, as if no id ended early: what collisions are resolved
    with (`extend`); None: ids have one length."""


@runtime_checkable
class Tokenizer(Protocol):
    """Turns item vectors into codes. An nn.Module whose state_dict is all it has learned."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""

    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """Codes of vectors, also of items it was not fitted on; in blocks, memory bounded."""

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"] | None:
        """A vector for each code of a level (from 0), for merges; None: the codes have none."""


@runtime_checkable
class FittedTokenizer(Tokenizer, Protocol):
    """A tokenizer that is fitted in one go (clusters, trees)."""

    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Learn the codes."""


@dataclass(frozen=True)
class VectorBatch:
    """Some items for a tokenizer that is trained by steps."""

    rows: Int[Tensor, " batch"]
    """int64 rows of the items."""
    vectors: Float[Tensor, "batch width"]
    """float32 item vectors."""
    progress: float
    """Share of the planned steps that are done, in [0, 1): what schedules of margins read."""

    @property
    def size(self) -> int:
        """Items."""
        return self.rows.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "VectorBatch":
        """The batch on another device."""
        return replace(
            self,
            rows=self.rows.to(device, non_blocking=non_blocking),
            vectors=self.vectors.to(device, non_blocking=non_blocking),
        )


@runtime_checkable
class TrainedTokenizer(Tokenizer, Protocol):
    """A tokenizer that is trained by the training loop."""

    def start(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Take the data in: statistics, start values of the codes."""

    def loss(self, batch: VectorBatch) -> Loss:
        """The objective on some items."""


@runtime_checkable
class MergingTokenizer(Tokenizer, Protocol):
    """A tokenizer that learns which tokens are merged by itself, once collisions are settled."""

    def learn_merges(self, ids: SemanticIds, histories: Histories) -> npt.NDArray[np.int32]:
        """[merges, 2] pairs of tokens, from the training part of the sequences."""


@runtime_checkable
class ItemScorer(Protocol):
    """A model that scores every item of the catalogue after a history."""

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Scores, higher is better; column i is of item number i + 1. A history may be empty."""


@runtime_checkable
class FittedScorer(ItemScorer, Protocol):
    """A scorer that is counted in one go, without the training loop."""

    def fit(self, histories: Histories) -> None:
        """Count the training part of the sequences."""


@runtime_checkable
class HistoryLearner(Protocol):
    """A model that the training loop trains on histories."""

    training_rows: Literal["users", "prefixes"]
    """Whether a training row is a whole sequence with a target at each position, or one prefix with
    one target, at its last position."""

    def loss(self, batch: HistoryBatch) -> Loss:
        """The objective on some training rows."""


State = Any
"""What a generator keeps between two steps of decoding; `decoding` only hands it back."""


@runtime_checkable
class Generator(Protocol):
    """A model that writes the tokens of the next item one by one. Decoding knows only this."""

    training_rows: Literal["users", "prefixes"]
    """Whether a training row is a whole sequence with a target at each position, or one prefix with
    one target, at its last position."""

    def start(self, batch: HistoryBatch) -> tuple[Float[Tensor, "batch 1 dim"], State]:
        """Encode the histories once; the hidden state that predicts the first token."""

    def advance(
        self,
        state: State,
        tokens: Int[Tensor, "batch beams"],
        parents: Int[Tensor, "batch beams"],
    ) -> tuple[Float[Tensor, "batch beams dim"], State]:
        """One step: each new beam continues beam `parents` of the step before with a token.

        Padding may be fed (a finished beam); its result is not used. The given state stays as it
        is: exact scoring continues it more than once.
        """

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
        """Logits of all tokens of the next position."""

    def logits_of(
        self, hidden: Float[Tensor, "... dim"], tokens: Int[Tensor, "... choices"]
    ) -> Float[Tensor, "... choices"]:
        """Logits of the given tokens only."""

    def loss(self, batch: HistoryBatch) -> Loss:
        """Cross-entropy of the targets' tokens."""
