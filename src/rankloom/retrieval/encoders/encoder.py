"""What all item encoders share: whitening, centring, unit length, and the checks of their input.

A row of zeros says nothing of its item (no word that the encoder knows, no training sequence). It
stays a row of zeros, and does not enter the mean or the covariance of the others.
"""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor

from rankloom.config import Config
from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue, FittedEncoder

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
        """The vectors of `fit`, with the same arguments and errors."""
        return self.fit(catalogue, histories, seed).vectors

    def fit(self, catalogue: Catalogue, histories: Histories | None, seed: int) -> FittedEncoder:
        """Learn from all items; the result has their float32 vectors, row i of item number i + 1.

        Args:
            catalogue: the items.
            histories: the training part of the sequences; None: there are none.
            seed: of what the encoder draws.

        Raises:
            ValueError: the encoder needs something of the items that they do not have.
        """
        vectors, learned = self.learn(catalogue, histories, seed)
        vectors = vectors.to(torch.float32)
        facts = {**learned.facts, "width": vectors.shape[1]}
        arrays = dict(learned.arrays)
        if self.centre:
            arrays["mean"] = mean_vector(vectors)
            vectors = centred(vectors, arrays["mean"])
        if self.whitening is not None:
            arrays["whitening_mean"], arrays["whitening_axes"] = whitening(vectors, self.whitening)
            vectors = whitened(vectors, arrays["whitening_mean"], arrays["whitening_axes"])
        return FittedEncoder(self, self._scaled(vectors), EncoderState(arrays, facts))

    def transform(self, state: EncoderState, catalogue: Catalogue) -> Float[Tensor, "items width"]:
        """float32 vectors of items that `fit` has not seen, in the space of those it has.

        Args:
            state: what `fit` has learned.
            catalogue: the new items.

        Raises:
            ValueError: the encoder knows items by the training sequences alone, or needs something
                of the items that they do not have.
        """
        if not self.sees_new_items():
            raise ValueError(
                "this encoder knows items by the training sequences alone, and new items are in "
                "none of them; put an encoder of texts or given vectors beside it (kind "
                "concatenation), or tokenize and train again"
            )
        return self.place(state, catalogue)

    def place(self, state: EncoderState, catalogue: Catalogue) -> Float[Tensor, "items width"]:
        """As `transform`; rows of zeros from an encoder that cannot see new items.

        That is what such an encoder gives items that it knows nothing of: as a part of a
        concatenation, it leaves the new items to the other parts.
        """
        vectors = self.new_vectors(state, catalogue).to(torch.float32)
        if vectors.shape[1] != state.facts["width"]:
            raise ValueError(
                f"new items' vectors must be as wide as those of the others; got "
                f"{vectors.shape[1]}, expected {state.facts['width']}"
            )
        if self.centre:
            vectors = centred(vectors, state.arrays["mean"])
        if self.whitening is not None:
            mean, axes = state.arrays["whitening_mean"], state.arrays["whitening_axes"]
            vectors = whitened(vectors, mean, axes)
        return self._scaled(vectors)

    def sees_new_items(self) -> bool:
        """Whether items that are in no training sequence have vectors of their own."""
        return True

    def learn(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> tuple[Float[Tensor, "items width"], EncoderState]:
        """`raw_vectors`, and what `new_vectors` needs: here nothing but their width."""
        return self.raw_vectors(catalogue, histories, seed), EncoderState()

    def new_vectors(
        self, state: EncoderState, catalogue: Catalogue
    ) -> Float[Tensor, "items width"]:
        """Raw vectors of new items: here each item's are its own affair."""
        return self.raw_vectors(catalogue, None, 0)

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """Vectors before centring, whitening and normalising; arguments as in `fit`."""
        raise NotImplementedError

    def cache_key(self) -> str:
        """The settings, and a hash of what an encoder reads from elsewhere."""
        return self.model_dump_json()

    def _scaled(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalise else vectors


class SequenceEncoderBase(EncoderBase):
    """Encoders that know items by the training sequences alone."""

    def sees_new_items(self) -> bool:
        """No: a new item is in no training sequence."""
        return False

    def new_vectors(
        self, state: EncoderState, catalogue: Catalogue
    ) -> Float[Tensor, "items width"]:
        """Rows of zeros, as of all items of which an encoder knows nothing."""
        return torch.zeros(catalogue.num_items, state.facts["width"])


def known_rows(vectors: Float[Tensor, "items width"]) -> Tensor:
    """[items] bool: the rows that are not all zero."""
    return (vectors != 0).any(1)


def mean_vector(vectors: Float[Tensor, "items width"]) -> Float64[Tensor, " width"]:
    """Mean of the rows that are not all zero; zeros where there are none."""
    rows = vectors[known_rows(vectors)].double()
    return rows.mean(0) if len(rows) else rows.new_zeros(vectors.shape[1])


def centred(
    vectors: Float[Tensor, "items width"], mean: Float64[Tensor, " width"]
) -> Float[Tensor, "items width"]:
    """Vectors without their mean; rows of zeros stay zero."""
    return torch.where(known_rows(vectors)[:, None], vectors - mean, 0.0).to(torch.float32)


def whitening(
    vectors: Float[Tensor, "items width"], dim: int
) -> tuple[Float64[Tensor, " width"], Float64[Tensor, "width dim"]]:
    """Whitening PCA: the mean, and the `dim` directions of largest variance, each over its root.

    Directions without variance (fewer items than `dim`, or equal vectors) are zeros.

    Raises:
        ValueError: `dim` is wider than the vectors.
    """
    width = vectors.shape[1]
    if dim > width:
        raise ValueError(
            f"whitening must not widen the vectors; got whitening={dim}, width={width}"
        )
    rows, mean = vectors[known_rows(vectors)].double(), mean_vector(vectors)
    if not len(rows):
        return mean, mean.new_zeros(width, dim)
    rows = rows - mean
    variances, axes = torch.linalg.eigh(rows.T @ rows / len(rows))  # ascending
    variances, axes = variances.flip(0)[:dim], axes.flip(1)[:, :dim]
    # An axis has no direction of its own: its largest entry is made positive.
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    enough = variances > 1e-10 * variances[0].clamp_min(1e-30)
    scale = torch.where(enough, variances.clamp_min(1e-30).rsqrt(), 0.0)
    return mean, axes * signs * scale


def whitened(
    vectors: Float[Tensor, "items width"],
    mean: Float64[Tensor, " width"],
    axes: Float64[Tensor, "width dim"],
) -> Float[Tensor, "items dim"]:
    """Vectors along the axes of `whitening`; rows of zeros stay zero."""
    known = known_rows(vectors)
    result = torch.zeros(vectors.shape[0], axes.shape[1])
    result[known] = ((vectors[known].double() - mean) @ axes).to(torch.float32)
    return result


def singular_vectors(
    matrix: csr_matrix, dim: int, power: float, seed: int
) -> tuple[Float[Tensor, "items dim"], Float[Tensor, "dim columns"]]:
    """`U S^power` and `V'` of a truncated SVD (randomised, Halko et al. 2011).

    Args:
        matrix: [items, columns], sparse.
        dim: singular vectors wanted; those that the matrix does not have are zeros.
        power: exponent of the singular values.
        seed: of the random projection.
    """
    items, columns = matrix.shape
    rank = min(dim, items, columns)
    result = np.zeros((items, dim), np.float32)
    directions = np.zeros((dim, columns), np.float32)
    if matrix.nnz:
        from sklearn.utils.extmath import randomized_svd  # half a second to import

        left, values, right = randomized_svd(matrix, rank, random_state=seed)
        # Directions of rounding error alone would otherwise get a length by a power below 1.
        values = np.where(values > 1e-6 * values[0], values, 0.0)
        result[:, :rank] = left * np.where(values > 0, values, 1.0) ** power * (values > 0)
        directions[:rank] = right * (values > 0)[:, None]
    return torch.from_numpy(result), torch.from_numpy(directions)


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
