"""Made-up run records with figures per scenario."""

from collections.abc import Mapping

import numpy as np
from run_records import build_record

from rankloom.evaluation.by_scenario import POOLED, over_scenarios
from rankloom.runs.record import DatasetFacts, Record

ROWS = {"home": 500, "search": 2000, "cart": 90}


def scenario_record(
    model: str, seed: int, aucs: Mapping[str, float], *, pooled: int = 0, **changes: object
) -> Record:
    """A run with these AUCs by scenario; `pooled` makes a tail of that many scenarios."""
    names = [*ROWS, POOLED] if pooled else list(ROWS)
    rows = {**ROWS, POOLED: 40}
    figures: dict[str, dict[str, float | int]] = {
        name: {"auc": aucs.get(name, 0.5), "rows": rows[name], "positives": rows[name] // 10}
        for name in names
    }
    if pooled:
        figures[POOLED]["scenarios"] = pooled
    labelled = {name: {"click": rows[name]} for name in names}
    metrics, _ = over_scenarios(figures, labelled, {"auc": "max"})
    return build_record(
        model,
        seed,
        metrics={"test": {"auc": 0.7, **metrics}},
        scenarios={"test": figures},
        dataset=DatasetFacts(
            name="demo", data_hash="aaaa", rows={"test": 2590}, labels=("click",), scenarios=5
        ),
        **changes,
    )


def runs_of(model: str, home: float, *, seeds: int = 3, pooled: int = 0) -> list[Record]:
    """Runs whose AUC in `home` is about `home`; search lies at .7, cart at .6 less for lr."""
    generator = np.random.default_rng(0)
    return [
        scenario_record(
            model,
            seed,
            {
                "home": home + 0.001 * seed,
                "search": 0.7 + 0.01 * generator.standard_normal(),
                "cart": 0.6 + (0.002 * seed**2 if model == "fm" else 0),
                POOLED: 0.55,
            },
            pooled=pooled,
        )
        for seed in range(1, seeds + 1)
    ]
