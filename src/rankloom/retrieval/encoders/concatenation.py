"""Several encoders' vectors side by side."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.encoders.encoder import EncoderBase, known_rows
from rankloom.retrieval.encoders.famae import FamaeConfig
from rankloom.retrieval.encoders.given import GivenConfig
from rankloom.retrieval.encoders.ppmi import PpmiConfig
from rankloom.retrieval.encoders.sasrec import SasrecConfig
from rankloom.retrieval.encoders.sentence import SentenceConfig
from rankloom.retrieval.encoders.tfidf import TfidfConfig
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

Part = Annotated[
    GivenConfig | TfidfConfig | SentenceConfig | PpmiConfig | SasrecConfig | FamaeConfig,
    Field(discriminator="kind"),
]
"""Encoders that can stand beside each other."""


class ConcatenationConfig(EncoderBase):
    """Several encoders' vectors, brought to one scale, weighted, and put side by side."""

    kind: Literal["concatenation"] = "concatenation"
    """Which encoder this is."""
    parts: tuple[Part, ...] = Field(min_length=1)
    """The encoders, in order."""
    weights: tuple[float, ...] = ()
    """Weight of each part; none given: all 1. Squared, it is the part's share of all variance."""

    @model_validator(mode="after")
    def _check_weights(self) -> "ConcatenationConfig":
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(
                f"weights must be as many as parts; got {len(self.weights)} weights for "
                f"{len(self.parts)} parts"
            )
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"weights must be above 0; got {self.weights}")
        return self

    def learn(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> tuple[Float[Tensor, "items width"], EncoderState]:
        """All parts' vectors; each part's mean squared length (zero rows aside) is its weight^2.

        Raises:
            ValueError: a part cannot be used on this catalogue.
        """
        fitted = [part.fit(catalogue, histories, seed) for part in self.parts]
        scales = torch.stack([_unit_scale(part.vectors) for part in fitted])  # [parts]
        vectors = self._side_by_side([part.vectors for part in fitted], scales)
        return vectors, EncoderState.of_parts([part.state for part in fitted], {"scales": scales})

    def new_vectors(
        self, state: EncoderState, catalogue: Catalogue
    ) -> Float[Tensor, "items width"]:
        """All parts' vectors of new items, on the scales of `learn`.

        Zeros from parts that know items by the training sequences alone.
        """
        placed = [
            part.place(state.part(number), catalogue) for number, part in enumerate(self.parts)
        ]
        return self._side_by_side(placed, state.arrays["scales"])

    def sees_new_items(self) -> bool:
        """Whether any part does."""
        return any(part.sees_new_items() for part in self.parts)

    def cache_key(self) -> str:
        """The settings, and the keys of the parts."""
        own = self.model_dump_json(exclude={"parts"})
        return " ".join([own, *(part.cache_key() for part in self.parts)])

    def _side_by_side(
        self, vectors: list[Float[Tensor, "items _"]], scales: Float[Tensor, " parts"]
    ) -> Float[Tensor, "items width"]:
        weights = self.weights or (1.0,) * len(self.parts)
        scaled = [
            part * scale * weight
            for part, scale, weight in zip(vectors, scales.unbind(), weights, strict=True)
        ]
        return torch.cat(scaled, dim=1)


def _unit_scale(vectors: Float[Tensor, "items width"]) -> Float[Tensor, ""]:
    """What makes the mean squared length of the rows that are not zero 1."""
    known = known_rows(vectors)
    return vectors[known].square().sum(1).mean().rsqrt() if known.any() else torch.tensor(1.0)
