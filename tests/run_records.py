"""Made-up run records for the tests of runs/ and report/."""

from datetime import UTC, datetime, timedelta
from typing import Any

from rankloom.runs.environment import Commit, Machine, Versions
from rankloom.runs.record import DatasetFacts, Record, TrainingSummary, recipe_hash

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def build_record(model: str = "dcnv2", seed: int = 1, auc: float = 0.75, **changes: Any) -> Record:
    """A completed run; `recipe` and every other field can be replaced."""
    recipe = changes.pop("recipe", None) or {
        "name": f"demo-{model}",
        "dataset": "prepared",
        "seed": seed,
        "model": {"name": model, "embedding_dim": 16},
        "training": {"learning_rate": 1e-3, "clip_norm": None},
    }
    values: dict[str, Any] = {
        "run_id": f"{recipe['name']}-{seed}",
        "name": recipe["name"],
        "model": model,
        "family": "ranking",
        "seed": seed,
        "recipe": recipe,
        "recipe_hash": recipe_hash(recipe),
        "dataset": DatasetFacts(
            name="demo", data_hash="aaaa", rows={"train": 80, "valid": 10, "test": 10}
        ),
        "commit": Commit(id="c0ffee", source_hash="5050"),
        "started": START,
        "finished": START + timedelta(seconds=30),
        "seconds": 30.0,
        "machine": Machine(cpu="Test CPU", cores=2, threads=2),
        "versions": Versions(python="3.11.7", torch="2.13.0", rankloom="0.1.0"),
        "training": TrainingSummary(
            epochs=3,
            steps=30,
            best_step=20,
            stopped="patience",
            seconds=25.0,
            rows_per_second=1000.0,
            table_optimizer="adam",
            shuffle_order="full",
            precision="float32",
        ),
        "metrics": {"valid": {"auc": auc}, "test": {"auc": auc}},
        "cost": {"dense_parameters": 100, "embedding_parameters": 20, "flops_per_row": 1234},
    }
    return Record(**{**values, **changes})
