"""TF-IDF of words and word pairs, reduced by a truncated SVD (latent semantic analysis).

Source: Deerwester et al., Indexing by Latent Semantic Analysis, JASIS 1990.
Equations: x[i, w] = (1 + log n[i, w]) * (log((1 + N) / (1 + N[w])) + 1), rows of length 1, with
    n[i, w] how often term w is in text i and N[w] in how many of the N texts; X = U S V';
    the vector of item i is row i of U S, that of an item that comes later x V.
Differs from the paper: terms are words and pairs of neighbouring words; the counts are damped; the
    SVD is randomised. Vectors are centred and given length 1, as in the trials that the defaults of
    the tokenizers come from.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.encoders.encoder import EncoderBase, check_texts, singular_vectors
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer


class TfidfConfig(EncoderBase):
    """TF-IDF and truncated SVD: text vectors without any pretrained weights."""

    kind: Literal["tfidf"] = "tfidf"
    """Which encoder this is."""
    dim: int = Field(64, gt=0)
    """Width of the vectors; with fewer items or terms, the last columns are zeros."""
    max_words: int = Field(2, ge=1)
    """Longest run of words that is a term."""
    min_items: int = Field(1, ge=1)
    """Least number of items that a term must be in."""
    max_terms: int = Field(200_000, gt=0)
    """The most frequent terms are kept, at most so many."""
    centre: bool = True
    normalise: bool = True

    def learn(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> tuple[Float[Tensor, "items dim"], EncoderState]:
        """Vectors of the texts; zeros for a text of no known term.

        Raises:
            ValueError: an item has no text, or no term is in enough of them.
        """
        check_texts(catalogue, self.kind)
        vectorizer = self._vectorizer(
            min_df=min(self.min_items, catalogue.num_items), max_features=self.max_terms
        )
        try:
            matrix = vectorizer.fit_transform(catalogue.texts)
        except ValueError as error:
            raise ValueError(
                f"no word is in at least {self.min_items} of the {catalogue.num_items:,} items' "
                f"texts ({error}); lower min_items, or take another encoder"
            ) from None
        vectors, directions = singular_vectors(matrix, self.dim, 1.0, seed)
        idf = torch.from_numpy(vectorizer.idf_.astype(np.float32))
        terms = vectorizer.get_feature_names_out().tolist()  # sorted, as the columns are
        return vectors, EncoderState({"idf": idf, "directions": directions}, {"terms": terms})

    def new_vectors(self, state: EncoderState, catalogue: Catalogue) -> Float[Tensor, "items dim"]:
        """X V of new texts, by the terms, their weights and the SVD of the others (folding in).

        Terms that no fitted item has are passed over. x V of a fitted text is its row of U S, but
        for the error of the randomised SVD.

        Raises:
            ValueError: an item has no text.
        """
        check_texts(catalogue, self.kind)
        vectorizer = self._vectorizer(vocabulary=state.facts["terms"])
        vectorizer.idf_ = state.arrays["idf"].numpy()
        matrix = vectorizer.transform(catalogue.texts)
        return torch.from_numpy(matrix @ state.arrays["directions"].numpy().T)

    def _vectorizer(self, **options: object) -> "TfidfVectorizer":
        from sklearn.feature_extraction.text import TfidfVectorizer  # half a second to import

        return TfidfVectorizer(
            ngram_range=(1, self.max_words),
            sublinear_tf=True,
            dtype=np.float32,
            # Numbers and single letters tell sizes and models apart.
            token_pattern=r"(?u)\b\w+\b",
            **options,
        )
