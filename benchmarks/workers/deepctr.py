"""deepctr-torch 0.3.0: its models and its own fit."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN, DeepFM
from sklearn.metrics import roc_auc_score

from benchmarks import shapes
from benchmarks.worker import serve


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.folder)
    columns = [
        SparseFeat(f"C{field + 1}", size + 2, embedding_dim=shapes.EMBEDDING_DIM)
        for field, size in enumerate(shapes.cardinalities())
    ]
    common = {"l2_reg_embedding": shapes.EMBEDDING_L2, "l2_reg_linear": 0, "l2_reg_dnn": 0}
    hidden = shapes.HIDDEN
    models = {
        # Without a deep part DeepFM is FM, and without FM its linear part is LR.
        "lr": lambda: DeepFM(columns, columns, use_fm=False, dnn_hidden_units=(), **common),
        "fm": lambda: DeepFM(columns, columns, use_fm=True, dnn_hidden_units=(), **common),
        "deepfm": lambda: DeepFM(columns, columns, dnn_hidden_units=hidden, **common),
        "dcnv2": lambda: DCN(
            columns,
            columns,
            cross_num=shapes.CROSS_LAYERS,
            cross_parameterization="matrix",
            dnn_hidden_units=hidden,
            l2_reg_cross=0,
            **common,
        ),
    }
    model = models[arguments.model]()
    optimizer = torch.optim.Adam(model.parameters(), lr=shapes.LEARNING_RATE)
    model.compile(optimizer, "binary_crossentropy")
    names = [column.name for column in columns]

    def load(split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        data = np.load(folder / f"{split}.npz")
        return {name: data[name] for name in names}, data["label"].astype(np.float32)

    train_x, train_y = load("train")
    valid_x, valid_y = load("valid")

    def epoch() -> dict[str, float]:
        start = time.perf_counter()
        model.fit(dict(train_x), train_y, batch_size=shapes.BATCH_SIZE, epochs=1, verbose=0)
        return {"rows": len(train_y), "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        start = time.perf_counter()
        model.predict(dict(valid_x), shapes.BATCH_SIZE)
        return {"rows": len(valid_y), "seconds": time.perf_counter() - start}

    def auc() -> dict[str, float]:
        scores = model.predict(dict(valid_x), shapes.BATCH_SIZE)
        return {"auc": float(roc_auc_score(valid_y, scores.reshape(-1)))}

    serve({"epoch": epoch, "infer": infer, "auc": auc})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
