import numpy as np
import pytest
import torch

from rankloom.config import parse_config
from rankloom.layers.kmeans import kmeans
from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems
from rankloom.retrieval.tokenizers import opq
from rankloom.retrieval.tokenizers.opq import OPQ, OPQConfig, parametric_rotation
from rankloom.retrieval.tokenizers.state import load_state


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(num_items: int = 600, width: int = 8) -> torch.Tensor:
    mixing = torch.randn(width, width, generator=seeded(1)) * torch.logspace(0, -1.5, width)
    return torch.randn(num_items, width, generator=seeded()) @ mixing.T + 3


def fitted(vectors: torch.Tensor, **settings: object) -> OPQ:
    values = {"num_digits": 4, "num_codes": 8, **settings}
    tokenizer = parse_config(OPQConfig, values, "test").build(vectors.shape[1])
    tokenizer.fit(TokenizerItems(vectors), seeded())
    return tokenizer


def distortion(tokenizer: OPQ, vectors: torch.Tensor) -> float:
    reconstruction = tokenizer.assign(vectors).reconstruction
    assert reconstruction is not None
    return float((reconstruction - vectors).square().sum())


def test_distortion_is_below_that_of_product_quantisation() -> None:
    vectors = correlated()
    plain = 0.0
    for piece in vectors.split(2, dim=1):
        centres, labels = kmeans(piece, 8, seeded())
        plain += float((piece - centres[labels]).square().sum())
    parametric = distortion(fitted(vectors, num_rotations=0), vectors)
    learned = distortion(fitted(vectors), vectors)
    assert learned < parametric < 0.7 * plain


def test_the_rotation_is_orthonormal() -> None:
    for num_rotations in (0, 5):
        rotation = fitted(correlated(), num_rotations=num_rotations).rotation
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(8), rtol=0, atol=1e-5)


def test_the_rotation_is_the_best_one_for_its_codes() -> None:
    vectors = correlated()
    tokenizer = fitted(vectors, num_rotations=20, num_iterations=1)
    best = distortion(tokenizer, vectors)
    codes, learned = tokenizer.assign(vectors).codes, tokenizer.rotation.clone()
    for seed in range(5):
        noise = 0.05 * torch.randn(8, 8, generator=seeded(seed))
        tokenizer.rotation.copy_(torch.linalg.qr(torch.eye(8) + noise)[0] @ learned)
        pieces = [tokenizer.code_vectors(digit)[codes[:, digit]] for digit in range(4)]
        assert float((tokenizer.mean + sum(pieces) - vectors).square().sum()) > best


def test_codes_agree_with_loops() -> None:
    vectors = correlated()
    tokenizer = fitted(vectors)
    assignment = tokenizer.assign(vectors)
    assert assignment.reconstruction is not None
    for item in range(0, 600, 29):
        centred = vectors[item] - tokenizer.mean
        built = tokenizer.mean.clone()
        for digit in range(4):
            directions = tokenizer.rotation[:, 2 * digit : 2 * digit + 2]
            piece = torch.stack([directions[:, place] @ centred for place in range(2)])
            distances = [float((piece - centre).norm()) for centre in tokenizer.centres[digit]]
            code = distances.index(min(distances))
            assert assignment.codes[item, digit] == code
            built += tokenizer.code_vectors(digit)[code]
        torch.testing.assert_close(assignment.reconstruction[item], built)


def test_directions_are_dealt_by_variance() -> None:
    # Variances 16, 9, 4, 1 along the axes: the greatest and the least share a piece (16 = 16 * 1
    # against 36 = 9 * 4), since 4 goes to the smaller product.
    axes = torch.eye(4) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    rotation = parametric_rotation(torch.cat([axes, -axes]), 2).abs()
    assert rotation.argmax(0).tolist() == [0, 3, 1, 2]
    torch.testing.assert_close(rotation.amax(0), torch.ones(4))


def test_new_items_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = correlated()
    tokenizer = fitted(vectors)
    whole = tokenizer.assign(vectors + 0.01)
    monkeypatch.setattr(opq, "BLOCK_ROWS", 77)
    blocks = tokenizer.assign(vectors + 0.01)
    assert np.array_equal(whole.codes, blocks.codes)
    torch.testing.assert_close(whole.reconstruction, blocks.reconstruction)


@pytest.mark.parametrize("num_items", [1, 5])
def test_fewer_items_than_codes(num_items: int) -> None:
    vectors = correlated()[:num_items]
    reconstruction = fitted(vectors).assign(vectors).reconstruction
    torch.testing.assert_close(reconstruction, vectors, rtol=1e-4, atol=1e-4)


def test_equal_vectors_have_equal_codes() -> None:
    vectors = torch.full((20, 8), 0.3)
    tokenizer = fitted(vectors)
    codes = tokenizer.assign(vectors).codes
    assert np.array_equal(codes, codes[:1].repeat(20, 0))
    torch.testing.assert_close(tokenizer.assign(vectors).reconstruction, vectors)


def test_saved_and_loaded() -> None:
    vectors = correlated()
    tokenizer = fitted(vectors)
    fresh = tokenizer.config.build(8)
    load_state(fresh, tokenizer.state_dict())
    assert isinstance(fresh, FittedTokenizer)
    assert fresh.level_sizes == (8, 8, 8, 8)
    assert np.array_equal(fresh.assign(vectors).codes, tokenizer.assign(vectors).codes)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="num_digits=3, width 8"):
        OPQConfig(num_digits=3).build(8)
    with pytest.raises(ValueError, match="at least one item"):
        fitted(torch.empty(0, 8))
    with pytest.raises(ValueError, match="finite"):
        fitted(torch.full((4, 8), torch.inf))
