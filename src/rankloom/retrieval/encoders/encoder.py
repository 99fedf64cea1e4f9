"""What all item encoders share: whitening, centring, unit length, and the checks of their input.

A row of zeros says nothing of its item (no word that the encoder knows, no training sequence). It
stays a row of zeros, and does not enter the mean or the covariance of the others.
"""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from rankloom.config import Config
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

FloatArray = npt.NDArray[np.float32]


class EncoderBase(Config):
    """Options of every encoder; they apply to its vectors in this order."""

    centre: bool = False
    """Subtract the mean vector of the items."""
    whitening: int | None = Field(None, gt=0)
    """Width after a whitening PCA: the strongest directions, each with variance 1."""
    normalise: bool = False
    """Give every vector length 1."""

    def encode(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """float32 vectors of all items; row i is item number i + 1.

        Args:
            catalogue: the items.
            histories: the training part of the sequences; None: there are none.
            seed: of what the encoder draws.

        Raises:
            ValueError: the encoder needs something of the items that they do not have.
        """
        vectors = self.raw_vectors(catalogue, histories, seed).to(torch.float32)
        if self.centre:
            vectors = centred(vectors)
        if self.whitening is not None:
            vectors = whitened(vectors, self.whitening)
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalise else vectors

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """Vectors before centring, whitening and normalising; arguments as in `encode`."""
        raise NotImplementedError

    def cache_key(self) -> str:
        """The settings, and a hash of what an encoder reads from elsewhere."""
        return self.model_dump_json()


def known_rows(vectors: Float[Tensor, "items width"]) -> Tensor:
    """[items] bool: the rows that are not all zero."""
    return (vectors != 0).any(1)


def centred(vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
    """Vectors without their mean; rows of zeros stay zero."""
    known = known_rows(vectors)
    if not known.any():
        return vectors
    mean = vectors[known].double().mean(0)
    return torch.where(known[:, None], vectors - mean, 0.0).to(torch.float32)


def whitened(vectors: Float[Tensor, "items width"], dim: int) -> Float[Tensor, "items dim"]:
    """Whitening PCA: the `dim` directions of largest variance, each scaled to variance 1.

    Directions without variance (fewer items than `dim`, or equal vectors) become zeros. Rows of
    zeros stay zero.

    Raises:
        ValueError: `dim` is wider than the vectors.
    """
    width = vectors.shape[1]
    if dim > width:
        raise ValueError(
            f"whitening must not widen the vectors; got whitening={dim}, width={width}"
        )
    known = known_rows(vectors)
    result = torch.zeros(vectors.shape[0], dim)
    if not known.any():
        return result
    rows = vectors[known].double()
    rows = rows - rows.mean(0)
    variances, axes = torch.linalg.eigh(rows.T @ rows / len(rows))  # ascending
    variances, axes = variances.flip(0)[:dim], axes.flip(1)[:, :dim]
    # An axis has no direction of its own: its largest entry is made positive.
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    enough = variances > 1e-10 * variances[0].clamp_min(1e-30)
    scale = torch.where(enough, variances.clamp_min(1e-30).rsqrt(), 0.0)
    result[known] = (rows @ (axes * signs * scale)).to(torch.float32)
    return result


def singular_vectors(
    matrix: csr_matrix, dim: int, power: float, seed: int
) -> Float[Tensor, "items dim"]:
    """Rows of `U S^power` of a truncated SVD (randomised, Halko et al. 2011).

    Args:
        matrix: [items, columns], sparse.
        dim: singular vectors wanted; those that the matrix does not have are zeros.
        power: exponent of the singular values.
        seed: of the random projection.
    """
    items, columns = matrix.shape
    rank = min(dim, items, columns)
    result = np.zeros((items, dim), np.float32)
    if matrix.nnz:
        left, values, _ = randomized_svd(matrix, rank, random_state=seed)
        # Directions of rounding error alone would otherwise get a length by a power below 1.
        values = np.where(values > 1e-6 * values[0], values, 0.0)
        result[:, :rank] = left * np.where(values > 0, values, 1.0) ** power * (values > 0)
    return torch.from_numpy(result)


def check_texts(catalogue: Catalogue, encoder: str) -> None:
    """Raise ValueError when an item has no text for a text encoder to read."""
    without = [item for item, text in zip(catalogue.ids, catalogue.texts, strict=True) if not text]
    if without:
        raise ValueError(
            f"{len(without):,} of {catalogue.num_items:,} items have no text, such as "
            f"{without[0]!r}; encoder {encoder} reads texts: give these items one, name more text "
            "columns, or take another encoder"
        )


def check_histories(histories: Histories | None, encoder: str) -> Histories:
    """The training sequences, or ValueError when there are none."""
    if histories is None:
        raise ValueError(f"encoder {encoder} learns from sequences; give it the training sequences")
    return histories
