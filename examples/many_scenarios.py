"""One model for many scenarios: a plain network, MI-DPG over it and STAR, scenario by scenario:
`python examples/many_scenarios.py`."""

import tempfile
from pathlib import Path
from typing import Any

import torch

import rankloom
from rankloom.data.loader import Loader
from rankloom.data.synthetic import SyntheticConfig, synthetic_dataset
from rankloom.evaluation.generated_weights import generated_similarity
from rankloom.scenario.mi_dpg import MIDPG

SIZES: dict[str, Any] = {"embedding_dim": 8, "hidden": [64, 32]}
MODELS: dict[str, dict[str, Any]] = {
    "dnn": SIZES,
    "mi_dpg": {"backbone": {"name": "dnn"} | SIZES},
    "star": SIZES,
}


def main(rows: int = 20_000) -> dict[str, dict[str, float]]:
    """Train the models and return the test AUC of every scenario, by model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = SyntheticConfig(num_users=300, num_items=100, num_scenarios=4, scenario=1.5)
        dataset = synthetic_dataset(folder, log, rows, conversion=False)
        aucs: dict[str, dict[str, float]] = {}
        for model, settings in MODELS.items():
            recipe = rankloom.Recipe(
                name=model,
                dataset=str(dataset.folder),
                model={"name": model} | settings,
                training={"epochs": 8, "batch_size": 512, "learning_rate": 3e-3},
            )
            run = rankloom.train(recipe, out=folder / "runs")
            table = run.record.scenarios["test"]
            aucs[model] = {scenario: figures["auc"] for scenario, figures in table.items()}
            counts = {scenario: int(figures["rows"]) for scenario, figures in table.items()}
            if isinstance(run.model, MIDPG):
                trained = run.model

        print("scenario  rows " + "".join(f"{model:>9}" for model in aucs))
        for scenario, count in counts.items():
            cells = "".join(f"{aucs[model][scenario]:9.4f}" for model in aucs)
            print(f"{scenario:8} {count:5d} {cells}")

        # What `rankloom inspect RUN` shows: how alike the scenarios' generated weights are.
        for layer in generated_similarity(trained, [], dataset.schema.scenarios[1:], run="mi_dpg"):
            print(f"{layer.layer}: similarity between scenarios {layer.mean:.2f}")

        # For serving, the weights of every scenario are made ahead.
        folded = trained.eval().fold()
        batch = next(iter(Loader(dataset.split("test"), batch_size=512)))
        with torch.inference_mode():
            torch.testing.assert_close(folded(batch), trained(batch))
        return aucs


if __name__ == "__main__":
    main()
