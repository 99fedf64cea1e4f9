"""What all encoders share, and the small ones: given vectors, tables of runs, concatenations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from rankloom.config import Config, parse_config
from rankloom.retrieval.encoders import (
    ConcatenationConfig,
    EncoderConfig,
    GivenConfig,
    PpmiConfig,
    SasrecConfig,
    TfidfConfig,
)
from rankloom.retrieval.encoders.encoder import (
    centred,
    mean_vector,
    singular_vectors,
    whitened,
    whitening,
)
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.items import Catalogue
from rankloom.retrieval.sequential.sasrec import SASRec, SASRecConfig


class Holder(Config):
    items: EncoderConfig


def of_vectors(vectors: Tensor) -> Catalogue:
    count = len(vectors)
    ids = [str(number) for number in range(count)]
    return Catalogue(ids, [""] * count, [""] * count, torch.zeros(count, 0).long(), vectors=vectors)


def drawn(items: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(items, width, generator=generator) @ mixing + 3.0


def white(vectors: Tensor, dim: int) -> Tensor:
    return whitened(vectors, *whitening(vectors, dim))


def without_mean(vectors: Tensor) -> Tensor:
    return centred(vectors, mean_vector(vectors))


def test_encoders_are_chosen_by_kind() -> None:
    made = parse_config(Holder, {"items": {"kind": "ppmi", "window": 3}}, "recipe").items
    assert made == PpmiConfig(window=3)
    parts = [{"kind": "tfidf", "dim": 8}, {"kind": "given"}]
    values = {"items": {"kind": "concatenation", "parts": parts, "weights": [1.0, 0.5]}}
    both = parse_config(Holder, values, "recipe").items
    assert both == ConcatenationConfig(
        parts=(TfidfConfig(dim=8), GivenConfig()), weights=(1.0, 0.5)
    )
    with pytest.raises(ValueError, match="unknown kind 'tfid' of items; did you mean tfidf"):
        parse_config(Holder, {"items": {"kind": "tfid"}}, "recipe")


def test_whitened_vectors_have_covariance_one_and_keep_the_strongest_directions() -> None:
    vectors = drawn(400, 6)
    found = white(vectors, 3)
    assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.T @ found / 400, torch.eye(3), atol=1e-4)
    # The slow reference: scores of a PCA, each divided by its own deviation.
    rows = (vectors - vectors.mean(0)).double()
    scores = torch.linalg.svd(rows, full_matrices=False).U[:, :3] * 400**0.5
    assert torch.allclose((scores.T @ found.double() / 400).abs(), torch.eye(3).double(), atol=1e-4)
    assert torch.equal(found, white(vectors, 3))


def test_whitening_of_fewer_items_than_directions_and_of_equal_ones_gives_zeros() -> None:
    two = white(torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]]), 3)
    assert two.abs().tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert white(torch.ones(5, 4), 2).tolist() == [[0.0, 0.0]] * 5
    assert white(torch.ones(1, 4), 2).tolist() == [[0.0, 0.0]]
    assert white(torch.zeros(0, 4), 2).shape == (0, 2)
    with pytest.raises(ValueError, match="got whitening=5, width=4"):
        white(torch.ones(3, 4), 5)


def test_rows_of_zeros_stay_and_do_not_count() -> None:
    vectors = drawn(20, 4)
    with_zeros = torch.cat([torch.zeros(3, 4), vectors])
    for change in (without_mean, lambda rows: white(rows, 2)):
        changed = change(with_zeros)
        assert (changed[:3] == 0).all()
        assert torch.allclose(changed[3:], change(vectors), atol=1e-6)
    assert without_mean(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_singular_vectors_are_those_of_the_exact_decomposition() -> None:
    matrix = drawn(12, 6)
    found, directions = singular_vectors(csr_matrix(matrix.numpy()), 4, 1.0, seed=0)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    exact = left[:, :4] * values[:4]
    assert torch.allclose(found @ found.T, exact @ exact.T, atol=1e-3)
    assert torch.allclose(matrix @ directions.T, found, atol=1e-3)
    half, _ = singular_vectors(csr_matrix(matrix.numpy()), 4, 0.5, seed=0)
    assert torch.allclose(half.norm(dim=0), values[:4].sqrt(), atol=1e-3)


def test_options_apply_in_order() -> None:
    vectors = drawn(50, 4)
    catalogue = of_vectors(vectors)
    assert torch.equal(GivenConfig().encode(catalogue, None, 0), vectors)
    unit = GivenConfig(centre=True, normalise=True).encode(catalogue, None, 0)
    expected = vectors - vectors.mean(0)
    assert torch.allclose(unit, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    found = GivenConfig(whitening=2).encode(catalogue, None, 0)
    assert torch.equal(found, white(vectors, 2))
    assert GivenConfig().cache_key() != GivenConfig(whitening=2).cache_key()


def test_given_needs_vectors() -> None:
    catalogue = Catalogue(["a"], [""], [""], torch.zeros(1, 0).long())
    with pytest.raises(ValueError, match="encoder given needs vectors in the catalogue"):
        GivenConfig().encode(catalogue, None, 0)


def test_the_table_of_a_run_is_read_by_name(tmp_path: Path) -> None:
    table = torch.arange(8.0).reshape(4, 2)  # padding, then three items
    save_file(
        {"embed.items.weight": table, "plain": table[1:] + 1.0}, tmp_path / "model.safetensors"
    )
    catalogue = of_vectors(torch.zeros(3, 1))
    encoder = SasrecConfig(run=str(tmp_path))
    assert torch.equal(encoder.encode(catalogue, None, 0), table[1:])
    other = SasrecConfig(run=str(tmp_path / "model.safetensors"), tensor="plain")
    assert torch.equal(other.encode(catalogue, None, 0), table[1:] + 1.0)
    seen = Histories.from_lists([[3, 1]], 3)
    assert encoder.encode(catalogue, seen, 0).tolist() == [[2.0, 3.0], [0.0, 0.0], [6.0, 7.0]]
    with pytest.raises(ValueError, match="no tensor tabel; it has embed.items.weight, plain"):
        SasrecConfig(run=str(tmp_path), tensor="tabel").encode(catalogue, None, 0)
    with pytest.raises(ValueError, match=r"has shape \(4, 2\); expected 7 rows"):
        encoder.encode(of_vectors(torch.zeros(7, 1)), None, 0)
    with pytest.raises(FileNotFoundError, match="no such run"):
        SasrecConfig(run=str(tmp_path / "gone")).encode(catalogue, None, 0)


def test_the_default_name_is_that_of_our_sasrec(tmp_path: Path) -> None:
    model = SASRec(SASRecConfig(), ItemSchema(3))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    vectors = SasrecConfig(run=str(tmp_path)).encode(of_vectors(torch.zeros(3, 1)), None, 0)
    assert torch.equal(vectors, model.embed.items.weight[1:])


def test_other_weights_of_a_run_have_another_cache_key(tmp_path: Path) -> None:
    keys = set()
    for value in (0.0, 1.0):
        save_file({"embed.items.weight": torch.full((3, 2), value)}, tmp_path / "model.safetensors")
        keys.add(SasrecConfig(run=str(tmp_path)).cache_key())
        part = ConcatenationConfig(parts=(SasrecConfig(run=str(tmp_path)),))
        keys.add(part.cache_key())
    assert len(keys) == 4


def test_parts_of_a_concatenation_are_on_one_scale_times_their_weights() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    catalogue = of_vectors(vectors)
    both = ConcatenationConfig(
        parts=(GivenConfig(), GivenConfig(normalise=True)), weights=(2.0, 0.5)
    ).encode(catalogue, None, 0)
    root = ((25.0 + 1.0) / 2) ** 0.5  # of the mean squared length of the rows that are not zero
    expected = torch.cat(
        [2.0 * vectors / root, 0.5 * torch.tensor([[0.6, 0.8], [0, 0], [0, 1]])], 1
    )
    assert torch.allclose(both, expected, atol=1e-6)
    plain = ConcatenationConfig(parts=(GivenConfig(),)).encode(catalogue, None, 0)
    assert torch.allclose(plain, vectors / root)
    with pytest.raises(ValueError, match="got 1 weights for 2 parts"):
        ConcatenationConfig(parts=(GivenConfig(), GivenConfig()), weights=(1.0,))
    with pytest.raises(ValueError, match="weights must be above 0"):
        ConcatenationConfig(parts=(GivenConfig(),), weights=(0.0,))
