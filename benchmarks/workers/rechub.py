"""torch-rechub 0.9.0: its DeepFM and DCNv2, its generator and its CTRTrainer."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from benchmarks import shapes
from benchmarks.worker import serve


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    folder = Path(arguments.folder)
    features = [
        SparseFeature(f"C{field + 1}", vocab_size=size + 2, embed_dim=shapes.EMBEDDING_DIM)
        for field, size in enumerate(shapes.cardinalities())
    ]
    mlp = {"dims": list(shapes.HIDDEN)}
    if arguments.model == "deepfm":
        model = DeepFM(features, features, mlp_params=mlp)
    else:
        model = DCNv2(features, shapes.CROSS_LAYERS, mlp, use_low_rank_mixture=False)

    def load(split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        data = np.load(folder / f"{split}.npz")
        names = [feature.name for feature in features]
        return {name: data[name] for name in names}, data["label"].astype(np.float32)

    train_x, train_y = load("train")
    valid_x, valid_y = load("valid")
    train, valid, _ = DataGenerator(train_x, train_y).generate_dataloader(
        x_val=valid_x,
        y_val=valid_y,
        x_test=valid_x,
        y_test=valid_y,
        batch_size=shapes.BATCH_SIZE,
    )
    trainer = CTRTrainer(
        model,
        optimizer_params={"lr": shapes.LEARNING_RATE},
        # Its penalty is lambda * sum(table^2); the others halve it.
        regularization_params={"embedding_l2": shapes.EMBEDDING_L2 / 2},
        n_epoch=1,
        model_path=str(folder),
    )

    def epoch() -> dict[str, float]:
        start = time.perf_counter()
        trainer.train_one_epoch(train)
        return {"rows": len(train_y), "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        start = time.perf_counter()
        trainer.predict(model, valid)
        return {"rows": len(valid_y), "seconds": time.perf_counter() - start}

    def auc() -> dict[str, float]:
        return {"auc": float(roc_auc_score(valid_y, trainer.predict(model, valid)))}

    serve({"epoch": epoch, "infer": infer, "auc": auc})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
