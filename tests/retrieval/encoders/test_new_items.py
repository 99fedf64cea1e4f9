"""Vectors of items that came after those an encoder was fitted on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.encoders import (
    ConcatenationConfig,
    EncoderConfig,
    GivenConfig,
    PpmiConfig,
    SasrecConfig,
    TfidfConfig,
)
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue, FittedEncoder, fit_items

TOPICS = (
    ("red", "lamp", "light", "bulb"),
    ("oak", "table", "wood", "leg"),
    ("silk", "dress", "blue", "hem"),
    ("steel", "knife", "blade", "sharp"),
)


def described(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of four words of one topic and a word of their own, and the topics."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, len(TOPICS), count).tolist()
    texts = [
        " ".join([*rng.choice(TOPICS[topic], 4), f"n{rng.integers(1000)}"]) for topic in topics
    ]
    return texts, topics


def of(texts: list[str], vectors: Tensor | None = None, first: int = 0) -> Catalogue:
    ids = [f"i{first + number}" for number in range(len(texts))]
    attributes = torch.zeros(len(ids), 0).long()
    return Catalogue(ids, [""] * len(ids), texts, attributes, vectors=vectors)


def drawn(items: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, width, generator=generator) + 2.0


ENCODERS: list[EncoderConfig] = [
    TfidfConfig(dim=8),
    TfidfConfig(dim=16, centre=False, normalise=False),
    TfidfConfig(dim=16, whitening=6),
    TfidfConfig(dim=16, min_items=2, max_words=1, max_terms=20),
    GivenConfig(),
    GivenConfig(centre=True, whitening=3, normalise=True),
    ConcatenationConfig(
        parts=(TfidfConfig(dim=8), GivenConfig(centre=True)),
        weights=(1.0, 0.5),
        centre=True,
        whitening=7,
        normalise=True,
    ),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=str)
def test_an_old_item_alone_keeps_its_vector(encoder: EncoderConfig, tmp_path: Path) -> None:
    texts, _ = described(60, 0)
    catalogue = of([*texts, texts[4]], drawn(61, 5))
    fitted = fit_items(encoder, catalogue)
    fitted.state.save(tmp_path)
    loaded = FittedEncoder(encoder, fitted.vectors, EncoderState.load(tmp_path))
    for number in (0, 7, 60):
        assert catalogue.vectors is not None
        alone = of([catalogue.texts[number]], catalogue.vectors[number : number + 1])
        found = fitted.transform(alone)
        torch.testing.assert_close(found, fitted.vectors[number : number + 1], rtol=1e-5, atol=1e-5)
        assert torch.equal(loaded.transform(alone), found)


def test_new_items_lie_near_their_like() -> None:
    texts, topics = described(80, 0)
    new_texts, new_topics = described(20, 1)
    for encoder in (TfidfConfig(dim=8), TfidfConfig(dim=8, max_words=1, whitening=3)):
        fitted = fit_items(encoder, of(texts))
        new = fitted.transform(of(new_texts, first=80))
        nearest = (new @ fitted.vectors.T).argmax(1)
        assert [topics[row] for row in nearest.tolist()] == new_topics
        # Others beside it do not move an item.
        assert torch.allclose(fitted.transform(of(new_texts[3:4])), new[3:4], atol=1e-6)


def test_fitted_vectors_are_the_same_to_the_bit_as_of_the_plain_steps() -> None:
    """Fingerprints of known items are of bits: these steps may be moved, but not changed."""
    texts, _ = described(60, 0)
    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b"
    )
    left, values, _ = randomized_svd(words.fit_transform(texts), 6, random_state=3)
    raw = torch.from_numpy((left * values).astype(np.float32))
    middle = (raw - raw.double().mean(0)).float()
    rows = middle.double() - middle.double().mean(0)
    variances, axes = torch.linalg.eigh(rows.T @ rows / 60)
    variances, axes = variances.flip(0)[:4], axes.flip(1)[:, :4]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    white = (rows @ (axes * signs * variances.rsqrt())).float()
    expected = {
        TfidfConfig(dim=6, centre=False, normalise=False): raw,
        TfidfConfig(dim=6): torch.nn.functional.normalize(middle, dim=1),
        TfidfConfig(dim=6, whitening=4, normalise=False): white,
    }
    for encoder, vectors in expected.items():
        assert torch.equal(fit_items(encoder, of(texts), seed=3).vectors, vectors)


def test_whitening_and_mean_are_those_of_the_fitted_items() -> None:
    vectors, new = drawn(50, 4), drawn(6, 4, seed=1)
    fitted = fit_items(GivenConfig(whitening=2), of([""] * 50, vectors))
    rows = (vectors - vectors.mean(0)).double()
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    signs = (left[:, :2].T @ fitted.vectors.double()).diagonal().sign()
    slow = (new - vectors.mean(0)).double() @ right[:2].T / values[:2] * 50**0.5 * signs
    found = fitted.transform(of([""] * 6, new))
    torch.testing.assert_close(found, slow.float(), rtol=1e-4, atol=1e-4)
    centred = fit_items(GivenConfig(centre=True), of([""] * 50, vectors))
    found = centred.transform(of([""] * 6, new))
    torch.testing.assert_close(found, new - vectors.mean(0), rtol=1e-5, atol=1e-5)


def test_new_items_that_say_nothing_are_rows_of_zeros() -> None:
    texts, _ = described(30, 0)
    fitted = fit_items(TfidfConfig(dim=8, whitening=3), of(texts))
    found = fitted.transform(of(["unheard of", texts[0]]))
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()


def test_encoders_fitted_on_nothing_take_new_items() -> None:
    fitted = fit_items(GivenConfig(centre=True, whitening=2), of([""] * 2, torch.zeros(2, 3)))
    assert fitted.transform(of([""] * 4, drawn(4, 3))).tolist() == [[0.0, 0.0]] * 4


def test_the_state_is_plain_numbers_and_sorted_terms(tmp_path: Path) -> None:
    fitted = fit_items(TfidfConfig(dim=2, max_words=1), of(["b a", "c a été", "b c"]))
    fitted.state.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors", "encoder.json"}
    state = EncoderState.load(tmp_path)
    assert state.facts == {"terms": ["a", "b", "c", "été"], "width": 2}
    assert {name: tuple(array.shape) for name, array in state.arrays.items()} == {
        "idf": (4,),
        "directions": (2, 4),
        "mean": (2,),
    }
    (tmp_path / "encoder.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"encoder\.safetensors is damaged: .*tokenize afresh"):
        EncoderState.load(tmp_path)
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no encoder\.safetensors"):
        EncoderState.load(tmp_path)


def test_what_knows_items_by_sequences_alone_says_so_and_is_zero_beside_others(
    tmp_path: Path,
) -> None:
    texts, _ = described(12, 0)
    catalogue, histories = of(texts), Histories.from_lists([[1, 2, 3, 4], [2, 1, 5, 12]], 12)
    save_file({"embed.items.weight": drawn(13, 4)}, tmp_path / "model.safetensors")
    new = of(texts[:2], first=12)
    for learned in (PpmiConfig(dim=4), SasrecConfig(run=str(tmp_path))):
        both = ConcatenationConfig(parts=(learned, TfidfConfig(dim=5)))
        for encoder in (learned, ConcatenationConfig(parts=(learned,))):
            with pytest.raises(ValueError, match="knows items by the training sequences alone"):
                fit_items(encoder, catalogue, histories).transform(new)
        fitted = fit_items(both, catalogue, histories)
        found = fitted.transform(new)
        assert (fitted.vectors[:2, :4] != 0).any(1).all()
        assert (found[:, :4] == 0).all()
        assert torch.allclose(found[:, 4:], fitted.vectors[:2, 4:], atol=1e-5)
        # That is what an item in no sequence has among the fitted ones: number 7 is in none.
        assert (fitted.vectors[6, :4] == 0).all()


def test_new_items_need_what_the_encoder_reads() -> None:
    fitted = fit_items(GivenConfig(), of(["a"] * 3, drawn(3, 4)))
    with pytest.raises(ValueError, match="as wide as those of the others; got 5, expected 4"):
        fitted.transform(of(["b"], drawn(1, 5)))
    with pytest.raises(ValueError, match="encoder given needs vectors"):
        fitted.transform(of(["b"]))
    texts = fit_items(TfidfConfig(dim=2), of(["a b", "b c"]))
    with pytest.raises(ValueError, match="1 of 2 items have no text, such as 'i8'"):
        texts.transform(of(["a", ""], first=7))
