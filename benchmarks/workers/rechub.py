"""torch-rechub 0.9.0: its models, its generator and its CTRTrainer.

Its networks always batch-normalise, and its linear terms read the embeddings. Its AFM attends to
one pooled vector instead of pairs and its EDCN's regulation is constant, so these two are left out.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DCN, AutoInt, DCNv2, DeepFM, FiBiNet, WideDeep
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
    crosses = shapes.CROSS_LAYERS
    models = {
        "wide_deep": lambda: WideDeep(features, features, mlp_params=mlp),
        "deepfm": lambda: DeepFM(features, features, mlp_params=mlp),
        "dcn": lambda: DCN(features, crosses, mlp),
        "dcnv2": lambda: DCNv2(features, crosses, mlp, use_low_rank_mixture=False),
        "autoint_16": lambda: AutoInt(
            features,
            [],
            num_layers=shapes.ATTENTION_LAYERS,
            num_heads=shapes.ATTENTION_HEADS,
            mlp_params=mlp,
        ),
        "fibinet": lambda: FiBiNet(features, mlp, reduction_ratio=shapes.SENET_REDUCTION),
    }
    model = models[arguments.model]()

    def load(folder: Path, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        data = np.load(folder / f"{split}.npz")
        names = [feature.name for feature in features]
        return {name: data[name] for name in names}, data["label"].astype(np.float32)

    train = valid = train_y = valid_y = None

    def use(folder: str) -> dict[str, int]:
        nonlocal train, valid, train_y, valid_y
        train_x, train_y = load(Path(folder), "train")
        valid_x, valid_y = load(Path(folder), "valid")
        train, valid, _ = DataGenerator(train_x, train_y).generate_dataloader(
            x_val=valid_x,
            y_val=valid_y,
            x_test=valid_x,
            y_test=valid_y,
            batch_size=arguments.batch_size,
        )
        return {"rows": len(train_y)}

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

    def parameters() -> dict[str, int]:
        return {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    def auc() -> dict[str, float]:
        return {"auc": float(roc_auc_score(valid_y, trainer.predict(model, valid)))}

    use(arguments.folder)
    serve({"use": use, "epoch": epoch, "infer": infer, "auc": auc, "parameters": parameters})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
