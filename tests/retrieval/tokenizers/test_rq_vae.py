import numpy as np
import pytest
import torch

from rankloom.config import parse_config
from rankloom.retrieval.protocols import TokenizerItems, TrainedTokenizer, VectorBatch
from rankloom.retrieval.tokenizers import rq_vae
from rankloom.retrieval.tokenizers.rq_vae import RQVAE, RQVAEConfig
from rankloom.retrieval.tokenizers.state import load_state


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def item_vectors(num_items: int = 200, width: int = 10) -> torch.Tensor:
    centres = torch.randn(8, width, generator=seeded(1))
    noise = 0.3 * torch.randn(num_items, width, generator=seeded())
    return 5 * (centres[torch.arange(num_items) % 8] + noise) + 2


def started(vectors: torch.Tensor, **settings: object) -> RQVAE:
    values = {"level_sizes": (8, 8), "hidden": (16,), "latent_dim": 4, **settings}
    torch.manual_seed(0)
    tokenizer = parse_config(RQVAEConfig, values, "test").build(vectors.shape[1])
    tokenizer.start(TokenizerItems(vectors), seeded())
    return tokenizer


def batch(vectors: torch.Tensor) -> VectorBatch:
    return VectorBatch(torch.arange(len(vectors)), vectors, 0.0)


def train(tokenizer: RQVAE, vectors: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        tokenizer.loss(batch(vectors)).total.backward()
        optimizer.step()


def test_the_loss_agrees_with_loops() -> None:
    vectors = item_vectors(20)
    tokenizer = started(vectors, commitment=0.5)
    inputs = (vectors - vectors.mean(0)) / vectors.std(0, correction=0)
    latents = tokenizer.encoder(inputs).detach()
    books = [book.vectors.detach() for book in tokenizer.quantizer.codebooks]
    reconstruction = quantization = 0.0
    for item in range(20):
        residual, total = latents[item], torch.zeros(4)
        for book in books:
            code = min(book, key=lambda code, r=residual: float((r - code).norm()))
            quantization += float((residual - code).square().mean()) / 20
            residual, total = residual - code, total + code
        error = tokenizer.decoder(total[None])[0].detach() - inputs[item]
        reconstruction += float(error.square().mean()) / 20
    loss = tokenizer.loss(batch(vectors))
    parts = {name: float(part.detach()) for name, part in loss.parts.items()}
    expected = {
        "reconstruction": reconstruction,
        "codebook": quantization,
        "commitment": quantization,
    }
    assert parts == pytest.approx(expected, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(
        reconstruction + 1.5 * quantization, rel=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"estimator": {"kind": "rotation_trick"}},
        {"last_level": {"kind": "sinkhorn"}},
        {"standardise": False},
        {"balanced_start": True, "revive_after": 5},
    ],
)
def test_training_lowers_the_error_and_reaches_every_parameter(settings: dict[str, object]) -> None:
    vectors = item_vectors()
    tokenizer = started(vectors, **settings)
    assert isinstance(tokenizer, TrainedTokenizer)
    tokenizer.loss(batch(vectors)).total.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name

    def error() -> float:
        assignment = tokenizer.assign(vectors)
        assert assignment.reconstruction is not None
        assert assignment.target is not None
        return float((assignment.reconstruction - assignment.target).square().mean())

    before = error()
    train(tokenizer, vectors, 100)
    assert error() < 0.6 * before


def test_the_estimators_differ_in_gradients_only() -> None:
    vectors = item_vectors()
    gradients, totals = [], []
    for kind in ("straight_through", "rotation_trick"):
        tokenizer = started(vectors, estimator={"kind": kind}, commitment=0)
        loss = tokenizer.loss(batch(vectors))
        loss.total.backward()
        totals.append(float(loss.total.detach()))
        gradients.append(next(tokenizer.encoder.parameters()).grad)
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.01)


def test_inputs_are_standardised_and_constant_columns_stay_at_zero() -> None:
    vectors = item_vectors()
    vectors[:, 3] = 7.0
    inputs = started(vectors).standardised(vectors)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    deviation = torch.ones(10)
    deviation[3] = 0
    torch.testing.assert_close(inputs.std(0, correction=0), deviation, rtol=0, atol=1e-4)
    torch.testing.assert_close(started(vectors, standardise=False).standardised(vectors), vectors)


def test_k_means_start_uses_the_codes() -> None:
    vectors = item_vectors()
    codes = started(vectors).assign(vectors).codes
    assert [len(np.unique(codes[:, level])) for level in range(2)] == [8, 8]


def test_new_items_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = item_vectors()
    tokenizer = started(vectors)
    whole, residuals = tokenizer.assign(vectors + 0.01), tokenizer.last_residuals(vectors)
    monkeypatch.setattr(rq_vae, "BLOCK_ROWS", 33)
    blocks = tokenizer.assign(vectors + 0.01)
    assert np.array_equal(whole.codes, blocks.codes)
    torch.testing.assert_close(whole.reconstruction, blocks.reconstruction)
    torch.testing.assert_close(tokenizer.last_residuals(vectors), residuals)
    distances = torch.cdist(residuals, tokenizer.code_vectors(1))
    assert distances.argmin(1).tolist() == tokenizer.assign(vectors).codes[:, 1].tolist()


@pytest.mark.parametrize("num_items", [1, 5])
def test_fewer_items_than_codes(num_items: int) -> None:
    vectors = item_vectors()[:num_items]
    tokenizer = started(vectors)
    loss = tokenizer.loss(batch(vectors))
    assert torch.isfinite(loss.total)
    assert len(np.unique(tokenizer.assign(vectors).codes, axis=0)) == num_items


def test_equal_vectors_have_equal_codes() -> None:
    vectors = item_vectors()[:3].repeat(20, 1)
    codes = started(vectors).assign(vectors).codes
    assert np.array_equal(codes, np.tile(codes[:3], (20, 1)))


def test_saved_and_loaded() -> None:
    vectors = item_vectors()
    tokenizer = started(vectors, last_level={"kind": "sinkhorn"})
    train(tokenizer, vectors, 5)
    fresh = tokenizer.config.build(10)
    load_state(fresh, tokenizer.state_dict())
    assert fresh.level_sizes == (8, 8)
    assert np.array_equal(fresh.assign(vectors).codes, tokenizer.assign(vectors).codes)


def test_nothing_to_start_on() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        started(torch.empty(0, 4))
    with pytest.raises(ValueError, match="finite"):
        started(torch.full((3, 4), torch.nan))
