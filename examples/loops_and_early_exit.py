"""Train with three loops, serve with none, or as many as a row needs:
`python examples/loops_and_early_exit.py`."""

import tempfile
from pathlib import Path

import torch

import rankloom
from rankloom.data.loader import Loader
from rankloom.data.synthetic import SyntheticConfig, synthetic_table_schema, write_csv
from rankloom.evaluation.adaptive import predict_adaptively
from rankloom.training.depths import measure_depths


def main(rows: int = 6_000, dim: int = 16) -> dict[str, float]:
    """Train LoopCTR, ask what its depths are worth, and return the AUC of every depth."""
    log = SyntheticConfig()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "log.csv", log, rows=rows)
        schema = synthetic_table_schema(log, "log.csv")
        dataset = rankloom.prepare(schema, folder / "log", root=folder)
        recipe = rankloom.Recipe(
            name="loops",
            dataset=str(folder / "log"),
            model={"name": "loopctr", "dim": dim, "embedding_dim": 8, "num_loops": 3},
            training={"epochs": 1, "batch_size": 256, "learning_rate": 3e-3},
        )
        run = rankloom.train(recipe, out=folder / "runs")

        # What `rankloom depths RUN` shows: each depth alone, the oracle beside chance, policies.
        figures = measure_depths(run, draws=3)
        aucs = {point.name: point.metrics["auc"] for point in figures.points}
        depths = {name: auc for name, auc in aucs.items() if name.startswith("depth")}

        # A policy fitted on the validation split stops most rows early.
        exits = [point for point in figures.points if point.family == "change exit"]
        batch = next(iter(Loader(dataset.split("test"), batch_size=512)))
        with torch.inference_mode():
            found = predict_adaptively(run.model.eval(), batch, exits[0].policy)
        print(f"loops that 512 rows took: {found.depth.bincount(minlength=4).tolist()}")
        return depths


if __name__ == "__main__":
    print(main())
