"""From a made-up log to a trained, evaluated ranker: `python examples/quickstart.py`."""

import tempfile
from pathlib import Path

import polars as pl

import rankloom
from rankloom.data.synthetic import SyntheticConfig, synthetic_table_schema, write_csv


def main(rows: int = 20_000) -> dict[str, float]:
    """Train DeepFM for two epochs and return its metrics on the test split."""
    log = SyntheticConfig()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "log.csv", log, rows=rows)
        schema = synthetic_table_schema(log, "log.csv")
        rankloom.prepare(schema, folder / "log", root=folder)
        recipe = rankloom.Recipe(
            name="first",
            dataset=str(folder / "log"),
            model={"name": "deepfm", "embedding_dim": 8, "hidden": [64, 32]},
            training={"epochs": 2, "batch_size": 512},
        )
        run = rankloom.train(recipe, out=folder / "runs")
        scores = run.predict(pl.read_csv(folder / "log.csv", n_rows=5))
        print(scores)
        return run.evaluate("test").metrics


if __name__ == "__main__":
    print(main())
