import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.evaluation.generated_weights import generated_similarity
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.scenario.mi_dpg import MIDPG, MIDPGConfig
from rankloom.training.experiment import train
from rankloom.training.inspection import inspect_runs
from rankloom.training.recipe import Recipe

SCHEMA = example_schema(num_scenarios=4)
NAMES = SCHEMA.scenarios[1:]
BACKBONE = {"name": "dnn", "hidden": [8], "embedding_dim": 4}


def build(condition: str = "scenario", fusion: str = "hadamard") -> MIDPG:
    settings = {
        "backbone": BACKBONE,
        "condition": {"kind": condition},
        "fusion": {"kind": fusion},
        "rank": 2,
    }
    model = MIDPG(parse_config(MIDPGConfig, settings, "test"), SCHEMA)
    nn.init.normal_(model.generate.weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["hadamard", "left_right", "additive"])
def test_matrices_are_compared(fusion: str) -> None:
    model = build(fusion=fusion)
    found = generated_similarity(model, [], NAMES, run="a")
    assert [(one.run, one.layer) for one in found] == [
        ("a", "network.layers.0"),
        ("a", "network.layers.2"),
    ]
    s = model.condition.scenarios.weight
    numbers = model.generate(model.hidden(s).relu()).split(model.sizes, 1)[0]
    factors = model.backbone.network.layers[0].fusion.factors
    matrices = []
    for row in numbers:
        if fusion == "left_right":
            matrices.append(row.view(2, -1).T @ factors.right)
        else:
            matrices.append(factors.left @ row.view(2, 2) @ factors.right)
    first, second, third = (m.flatten() for m in matrices)
    expected = float(functional.cosine_similarity(first, second, 0))
    assert found[0].cosine[0][1] == pytest.approx(expected, rel=1e-4)
    assert found[0].cosine[2][2] == pytest.approx(1.0)
    others = [functional.cosine_similarity(third, one, 0) for one in (first, second)]
    assert found[0].mean == pytest.approx((expected + float(sum(others))) / 3, rel=1e-4)


@torch.no_grad()
def test_rows_are_averaged_where_they_condition() -> None:
    model = build("context").train()
    batches = [random_batch(SCHEMA, 20, seed) for seed in (0, 1)]
    found = generated_similarity(model, batches, NAMES, run="a")
    assert model.training
    total: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    for batch in batches:
        given = model.condition(batch, model.backbone)
        for row, scenario in enumerate(batch.scenario.tolist()):
            if scenario:
                total[scenario].append(model.generated(given.vectors)[row, : model.sizes[0]])
    means = torch.stack([torch.stack(rows).mean(0) for rows in total.values()])
    matrices = model.backbone.network.layers[0].fusion.generated_matrices(means).flatten(1)
    expected = float(functional.cosine_similarity(matrices[0], matrices[2], 0))
    assert found[0].cosine[0][2] == pytest.approx(expected, rel=1e-4)


def test_nothing_generated_and_nothing_to_compare() -> None:
    model = build()
    nn.init.zeros_(model.generate.weight)
    (first, _) = generated_similarity(model, [], NAMES, run="a")
    assert math.isnan(first.mean)
    assert math.isnan(first.cosine[0][0])
    absent = generated_similarity(build("context"), [random_batch(SCHEMA, 1)], NAMES, run="a")
    assert math.isnan(absent[0].mean)
    assert generated_similarity(DNN(DNNConfig(), SCHEMA), [], NAMES, run="a") == []


def test_an_inspected_run_shows_its_generated_layers(small_log: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "dataset": str(small_log / "log"),
            "model": {"name": "mi_dpg", "backbone": BACKBONE},
            "training": {"epochs": 1, "batch_size": 1024, "learning_rate": 0.01},
        }
    )
    found = inspect_runs(train(recipe, out=tmp_path))
    assert [one.layer for one in found.generated] == ["network.layers.0", "network.layers.2"]
    assert found.generated[0].scenarios == ("s0", "s1", "s2")
    assert -1 <= found.generated[0].mean <= 1
