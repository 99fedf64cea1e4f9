"""Generative retrieval: CapsID with SemanticBPE under a decoder, beside SASRec and popularity:
`python examples/generative_retrieval.py`."""

import tempfile
from pathlib import Path
from typing import Any

import rankloom
from rankloom.data.synthetic_items import synthetic_sequences

SIZES: dict[str, Any] = {"dim": 64, "num_layers": 2, "num_heads": 2, "max_length": 20}
TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "monitor": "ndcg@10",
    "patience": 10,
}
RECIPES: dict[str, dict[str, Any]] = {
    "popularity": {"model": {"name": "popularity"}},
    "sasrec": {"model": {"name": "sasrec", "dropout": 0.1} | SIZES},
    "capsid": {
        "items": {"kind": "given"},
        "tokenizer": {"kind": "capsid", "num_codes": 16, "num_levels": 4, "dim": 24},
        "tokenizer_training": {"epochs": 30, "batch_size": 128},
        "collisions": {"kind": "extend"},
        "merges": {"max_merges": 32, "min_count": 3, "meaning": "items"},
        "model": {"name": "decoder", "dropout": 0.0, "network": {"hidden_dim": 128}} | SIZES,
        # While the model is trained, fewer users and beams say which weights are the best.
        "evaluation": {"validation_users": 150, "validation_beams": 10},
    },
}


def main(users: int = 500, epochs: int = 25) -> dict[str, dict[str, float]]:
    """Train the three models and return the test metrics of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Or your own tables: `rankloom prepare sequences.toml`.
        data = synthetic_sequences(num_items=120, num_users=users, branching=(3, 4), seed=1)
        data.save(folder / "data")
        metrics: dict[str, dict[str, float]] = {}
        for model, settings in RECIPES.items():
            recipe = rankloom.RetrievalRecipe(
                name=model,
                dataset=str(folder / "data"),
                seed=1,
                training=TRAINING | {"epochs": epochs},
                **settings,
            )
            run = rankloom.train(recipe, out=folder / "runs")
            metrics[model] = run.evaluate("test").metrics

        print("model       recall@10  ndcg@10")
        for model, figures in metrics.items():
            print(f"{model:10} {figures['recall@10']:10.4f} {figures['ndcg@10']:8.4f}")

        # The last run is CapsID's: its ids, then what it recommends after a history.
        assert run.tokenized is not None
        made = run.tokenized.diagnostics
        print(
            f"{made.num_ids} ids of {made.num_items} items: {made.mean_length:.2f} codes, "
            f"{made.mean_tokens:.2f} tokens after {len(run.tokenized.ids.merges)} merges"
        )
        history = data.catalogue.ids_of(data.histories.of(0))
        [answer] = run.recommend([history], count=3)
        print("after", " ".join(history))
        for item, title, score in zip(answer.items, answer.titles, answer.scores, strict=True):
            print(f"{score:8.3f} {item:>5} {title}")
        return metrics


if __name__ == "__main__":
    main()
