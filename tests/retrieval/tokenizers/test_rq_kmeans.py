import numpy as np
import pytest
import torch

from rankloom.config import parse_config
from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems
from rankloom.retrieval.tokenizers import rq_kmeans
from rankloom.retrieval.tokenizers.rq_kmeans import RQKMeans, RQKMeansConfig
from rankloom.retrieval.tokenizers.state import load_state


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered(num_items: int = 300, width: int = 6) -> torch.Tensor:
    coarse = 5 * torch.randn(5, width, generator=seeded(1))
    fine = torch.randn(25, width, generator=seeded(2))
    which = torch.arange(num_items) % 25
    return (
        coarse[which // 5] + fine[which] + 0.2 * torch.randn(num_items, width, generator=seeded())
    )


def fitted(vectors: torch.Tensor, **settings: object) -> RQKMeans:
    config = parse_config(RQKMeansConfig, {"level_sizes": (8, 6, 4), **settings}, "test")
    tokenizer = config.build(vectors.shape[1])
    tokenizer.fit(TokenizerItems(vectors), seeded())
    return tokenizer


@pytest.mark.parametrize("normalise", [False, True])
def test_codes_agree_with_loops(normalise: bool) -> None:
    vectors = clustered()
    tokenizer = fitted(vectors, normalise_residuals=normalise)
    assignment = tokenizer.assign(vectors)
    assert assignment.reconstruction is not None
    for item in range(0, 300, 29):
        residual, built = vectors[item], torch.zeros(6)
        for level in range(3):
            if normalise:
                residual = residual / residual.norm()
            centres = tokenizer.code_vectors(level)
            distances = [float((residual - centre).norm()) for centre in centres]
            code = distances.index(min(distances))
            assert assignment.codes[item, level] == code
            built = built + tokenizer.scales[level] * centres[code]
            residual = residual - centres[code]
        torch.testing.assert_close(assignment.reconstruction[item], built)


def test_the_centres_are_the_means_of_what_they_were_given() -> None:
    vectors = clustered()
    tokenizer = fitted(vectors)
    codes = torch.from_numpy(tokenizer.assign(vectors).codes).long()
    residual = vectors
    for level in range(3):
        centres = tokenizer.code_vectors(level)
        for code in codes[:, level].unique().tolist():
            members = residual[codes[:, level] == code]
            torch.testing.assert_close(centres[code], members.mean(0), rtol=1e-3, atol=1e-3)
        residual = residual - centres[codes[:, level]]


def test_scales_are_the_mean_norms_of_the_residuals() -> None:
    vectors = clustered()
    tokenizer = fitted(vectors, normalise_residuals=True)
    first = vectors.norm(dim=1).mean()
    codes = torch.from_numpy(tokenizer.assign(vectors).codes).long()
    units = vectors / vectors.norm(dim=1, keepdim=True)
    second = (units - tokenizer.code_vectors(0)[codes[:, 0]]).norm(dim=1).mean()
    torch.testing.assert_close(tokenizer.scales[:2], torch.stack([first, first * second]))
    torch.testing.assert_close(fitted(vectors).scales, torch.ones(3))


def test_every_level_leaves_less_over() -> None:
    vectors = clustered()
    errors = []
    for num_levels in (1, 2, 3):
        assignment = fitted(vectors, level_sizes=(8,) * num_levels).assign(vectors)
        assert assignment.reconstruction is not None
        errors.append(float((assignment.reconstruction - vectors).square().sum()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_balanced_codes_have_near_equal_loads() -> None:
    vectors = torch.randn(2000, 4, generator=seeded()) ** 3
    loads = [
        np.bincount(fitted(vectors, balanced=balanced).assign(vectors).codes[:, 0], minlength=8)
        for balanced in (False, True)
    ]
    assert loads[0].max() > 1000
    assert loads[1].max() < 350  # 250 each


def test_mini_batches_come_near_the_whole() -> None:
    vectors = clustered(2000)
    errors = []
    for settings in ({}, {"batch_size": 256, "num_iterations": 60}):
        assignment = fitted(vectors, **settings).assign(vectors)
        assert assignment.reconstruction is not None
        errors.append(float((assignment.reconstruction - vectors).square().sum()))
    assert errors[1] < 1.3 * errors[0]


def test_new_items_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered()
    tokenizer = fitted(vectors, normalise_residuals=True)
    new = vectors + 0.01
    whole, residuals = tokenizer.assign(new), tokenizer.last_residuals(new)
    monkeypatch.setattr(rq_kmeans, "BLOCK_ROWS", 41)
    blocks = tokenizer.assign(new)
    assert np.array_equal(whole.codes, blocks.codes)
    torch.testing.assert_close(whole.reconstruction, blocks.reconstruction)
    torch.testing.assert_close(whole.confidence, blocks.confidence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(tokenizer.last_residuals(new), residuals)


def test_the_last_level_quantises_the_last_residuals() -> None:
    vectors = clustered()
    tokenizer = fitted(vectors, balanced=True)
    residuals = tokenizer.last_residuals(vectors)
    costs = torch.cdist(residuals, tokenizer.code_vectors(2)).square()
    costs = costs + tokenizer.get_buffer("prices_2")
    assert costs.argmin(1).tolist() == tokenizer.assign(vectors).codes[:, 2].tolist()


@pytest.mark.parametrize("settings", [{}, {"balanced": True}, {"normalise_residuals": True}])
@pytest.mark.parametrize("num_items", [1, 3])
def test_fewer_items_than_codes(settings: dict[str, bool], num_items: int) -> None:
    vectors = clustered()[:num_items]
    assignment = fitted(vectors, **settings).assign(vectors)
    assert assignment.reconstruction is not None
    assert torch.isfinite(assignment.reconstruction).all()
    assert len(np.unique(assignment.codes[:, 0])) == num_items
    if not settings:
        torch.testing.assert_close(assignment.reconstruction, vectors)


def test_equal_vectors_have_equal_codes() -> None:
    vectors = clustered()[:7].repeat(30, 1)
    codes = fitted(vectors).assign(vectors).codes
    assert np.array_equal(codes, np.tile(codes[:7], (30, 1)))


def test_saved_and_loaded() -> None:
    vectors = clustered()
    tokenizer = fitted(vectors, balanced=True)
    fresh = tokenizer.config.build(6)
    load_state(fresh, tokenizer.state_dict())
    assert isinstance(fresh, FittedTokenizer)
    assert fresh.level_sizes == (8, 6, 4)
    assert np.array_equal(fresh.assign(vectors).codes, tokenizer.assign(vectors).codes)


def test_no_items_to_assign() -> None:
    assert fitted(clustered()).assign(torch.empty(0, 6)).codes.shape == (0, 3)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="set batch_size = none, or balanced = false"):
        RQKMeansConfig(balanced=True, batch_size=8).build(4)
    with pytest.raises(ValueError, match="at least one vector"):
        fitted(torch.empty(0, 4))
    with pytest.raises(ValueError, match="level_sizes"):
        parse_config(RQKMeansConfig, {"level_sizes": []}, "test")
