"""Vectors that came with the items."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rankloom.retrieval.encoders.encoder import EncoderBase
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


class GivenConfig(EncoderBase):
    """The catalogue's own vectors."""

    kind: Literal["given"] = "given"
    """Which encoder this is."""

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """The vectors as they are.

        Raises:
            ValueError: the catalogue has none.
        """
        if catalogue.vectors is None:
            raise ValueError(
                "encoder given needs vectors in the catalogue; name their column as vectors in "
                "[items] of the data set, or take another encoder"
            )
        return catalogue.vectors
