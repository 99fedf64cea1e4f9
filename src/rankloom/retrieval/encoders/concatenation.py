"""Several encoders' vectors side by side."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

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

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """All parts' vectors; each part's mean squared length (zero rows aside) is its weight^2.

        Raises:
            ValueError: a part cannot be used on this catalogue.
        """
        weights = self.weights or (1.0,) * len(self.parts)
        encoded = [
            _unit_scale(part.encode(catalogue, histories, seed)) * weight
            for part, weight in zip(self.parts, weights, strict=True)
        ]
        return torch.cat(encoded, dim=1)

    def cache_key(self) -> str:
        """The settings, and the keys of the parts."""
        own = self.model_dump_json(exclude={"parts"})
        return " ".join([own, *(part.cache_key() for part in self.parts)])


def _unit_scale(vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
    known = known_rows(vectors)
    if not known.any():
        return vectors
    return vectors * vectors[known].square().sum(1).mean().rsqrt()
