"""FuxiCTR 2.3.10: its layers, its embedding, its loader and its own training loop.

Its model zoo is missing from its wheel, so the four models are assembled here from its parts, in
the form of its documentation.
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
from fuxictr.pytorch.layers import (
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score

from benchmarks import shapes
from benchmarks.worker import serve


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
    def __init__(self, kind: str, features: FeatureMap, folder: Path) -> None:
        super().__init__(
            features,
            model_id=kind,
            gpu=-1,
            embedding_regularizer=shapes.EMBEDDING_L2,
            net_regularizer=0,
            verbose=0,
            model_root=str(folder),
            metrics=["AUC"],
        )
        self.kind = kind
        width = shapes.EMBEDDING_DIM * shapes.NUM_FIELDS
        if kind == "lr":
            self.lr_layer = LogisticRegression(features, use_bias=True)
        else:
            self.embedding_layer = FeatureEmbedding(features, shapes.EMBEDDING_DIM)
        if kind in ("fm", "deepfm"):
            self.fm = FactorizationMachine(features)
        if kind == "deepfm":
            self.mlp = MLP_Block(width, hidden_units=list(shapes.HIDDEN), output_dim=1)
        if kind == "dcnv2":
            self.crossnet = CrossNetV2(width, shapes.CROSS_LAYERS)
            self.mlp = MLP_Block(width, hidden_units=list(shapes.HIDDEN))
            self.fc = torch.nn.Linear(width + shapes.HIDDEN[-1], 1)
        self.compile("adam", "binary_crossentropy", shapes.LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        if self.kind == "lr":
            logit = self.lr_layer(X)
        elif self.kind == "fm":
            logit = self.fm(X, self.embedding_layer(X))
        elif self.kind == "deepfm":
            embedded = self.embedding_layer(X)
            logit = self.fm(X, embedded) + self.mlp(embedded.flatten(start_dim=1))
        else:
            flat = self.embedding_layer(X, flatten_emb=True)
            logit = self.fc(torch.cat([self.crossnet(flat), self.mlp(flat)], dim=-1))
        return {"y_pred": self.output_activation(logit)}


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    folder = Path(arguments.folder)
    features = feature_map(folder)
    options = {"batch_size": shapes.BATCH_SIZE, "data_format": "npz", "num_workers": 1}
    train, valid = RankDataLoader(
        features,
        stage="train",
        train_data=str(folder / "train.npz"),
        valid_data=str(folder / "valid.npz"),
        shuffle=True,
        **options,
    )
    model = Assembled(arguments.model, features, folder)
    model._max_gradient_norm = 10.0  # what fit() sets before its epochs
    model._total_steps = 0
    model._batch_index = 0
    model._epoch_index = 0
    model._eval_steps = 10**9
    model._stop_training = False
    model.valid_gen = valid

    def epoch() -> dict[str, float]:
        start = time.perf_counter()
        model.train_epoch(train)
        return {"rows": train.num_samples, "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        start = time.perf_counter()
        model.predict(valid)
        return {"rows": valid.num_samples, "seconds": time.perf_counter() - start}

    def auc() -> dict[str, float]:
        labels = np.load(folder / "valid.npz")["label"]
        return {"auc": float(roc_auc_score(labels, model.predict(valid)))}

    serve({"epoch": epoch, "infer": infer, "auc": auc})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
