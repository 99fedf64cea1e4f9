from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankloom.config import parse_config
from rankloom.retrieval.encoders import FamaeConfig
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.items import Catalogue
from rankloom.retrieval.tokenizers.famae import FAMAE, FAMAEConfig


def catalogue(count: int) -> Catalogue:
    ids = [str(number) for number in range(count)]
    return Catalogue(ids, [""] * count, [""] * count, torch.zeros(count, 0).long())


def test_vectors_of_a_run_are_those_of_the_model(tmp_path: Path) -> None:
    schema = ItemSchema(3, attributes=torch.tensor([[1, 2], [0, 1], [3, 3]]))
    model = FAMAE(FAMAEConfig(dim=4, num_heads=2), schema)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = parse_config(FamaeConfig, {"run": str(tmp_path)}, "recipe")
    assert torch.equal(encoder.encode(catalogue(3), None, 0), model.item_vectors())
    key = encoder.cache_key()
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    assert encoder.cache_key() != key
    with pytest.raises(ValueError, match="no run of the model famae"):
        encoder.encode(catalogue(3), None, 0)


def test_runs_of_other_catalogues_and_missing_ones_are_refused(tmp_path: Path) -> None:
    model = FAMAE(FAMAEConfig(dim=4, num_heads=2), ItemSchema(3))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = FamaeConfig(run=str(tmp_path / "weights.safetensors"))
    with pytest.raises(ValueError, match="was trained on 3 items; the catalogue has 5"):
        encoder.encode(catalogue(5), None, 0)
    with pytest.raises(FileNotFoundError, match="no such run"):
        FamaeConfig(run=str(tmp_path / "nowhere")).cache_key()
