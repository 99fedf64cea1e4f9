"""FuxiCTR 2.3.10: its layers, its embedding, its loader and its own training loop.

Its model zoo is missing from its wheel, so the models are assembled from its parts
(`fuxictr_models`).
"""

import json
import sys
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score

from benchmarks import shapes
from benchmarks.worker import serve
from benchmarks.workers.fuxictr_models import CORES, WITH_LINEAR_TERM


def feature_map(folder: Path) -> FeatureMap:
    result = FeatureMap("bench", str(folder))
    result.labels = ["label"]
    result.features = OrderedDict(
        (
            f"C{field + 1}",
            {
                "type": "categorical",
                "source": "",
                "padding_idx": 0,
                "vocab_size": size + 2,
                "oov_idx": size + 1,
            },
        )
        for field, size in enumerate(shapes.cardinalities())
    )
    result.num_fields = result.get_num_fields()
    result.default_emb_dim = shapes.EMBEDDING_DIM
    result.set_column_index()
    return result


class Assembled(BaseModel):
    def __init__(self, case: str, features: FeatureMap, folder: Path) -> None:
        super().__init__(
            features,
            model_id=case,
            gpu=-1,
            embedding_regularizer=shapes.EMBEDDING_L2,
            net_regularizer=0,
            verbose=0,
            model_root=str(folder),
            metrics=["AUC"],
        )
        if case in WITH_LINEAR_TERM:
            self.lr_layer = LogisticRegression(features, use_bias=True)
        if case in CORES:
            self.embedding_layer = FeatureEmbedding(features, shapes.EMBEDDING_DIM)
            self.core = CORES[case]()
        self.compile("adam", "binary_crossentropy", shapes.LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        logit, towers = 0.0, []
        if hasattr(self, "core"):
            logit = self.core(self.embedding_layer(X))
            if isinstance(logit, tuple):
                logit, *towers = logit
        if hasattr(self, "lr_layer"):
            logit = logit + self.lr_layer(X)
        return {
            "y_pred": self.output_activation(logit),
            "towers": [self.output_activation(tower) for tower in towers],
        }

    def add_loss(self, return_dict, y_true):
        loss = main = super().add_loss(return_dict, y_true)
        for tower in return_dict["towers"]:
            loss = loss + self.core.tower_loss(main, return_dict["y_pred"], tower, y_true)
        return loss


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    folder = Path(arguments.folder)
    features = feature_map(folder)

    def load(folder: Path) -> None:
        nonlocal train, valid, labels
        train, valid = RankDataLoader(
            features,
            stage="train",
            train_data=str(folder / "train.npz"),
            valid_data=str(folder / "valid.npz"),
            batch_size=arguments.batch_size,
            shuffle=True,
            data_format="npz",
            num_workers=1,
        )
        labels = np.load(folder / "valid.npz")["label"]
        model.valid_gen = valid

    train = valid = labels = None
    model = Assembled(arguments.model, features, folder)
    model._max_gradient_norm = 10.0  # what fit() sets before its epochs
    model._total_steps = 0
    model._batch_index = 0
    model._epoch_index = 0
    model._eval_steps = 10**9
    model._stop_training = False
    load(folder)

    def use(folder: str) -> dict[str, int]:
        load(Path(folder))
        return {"rows": train.num_samples}

    def epoch() -> dict[str, float]:
        start = time.perf_counter()
        model.train_epoch(train)
        return {"rows": train.num_samples, "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        start = time.perf_counter()
        model.predict(valid)
        return {"rows": valid.num_samples, "seconds": time.perf_counter() - start}

    def parameters() -> dict[str, int]:
        return {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    def auc() -> dict[str, float]:
        return {"auc": float(roc_auc_score(labels, model.predict(valid)))}

    serve({"use": use, "epoch": epoch, "infer": infer, "auc": auc, "parameters": parameters})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
