"""deepctr-torch 0.3.0: its models and its own fit."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import AFM, AFN, DCN, PNN, WDL, AutoInt, DeepFM, FiBiNET, xDeepFM
from sklearn.metrics import roc_auc_score

from benchmarks import shapes
from benchmarks.worker import serve


def main(arguments: SimpleNamespace) -> None:
    torch.set_num_threads(arguments.threads)
    columns = [
        SparseFeat(f"C{field + 1}", size + 2, embedding_dim=shapes.EMBEDDING_DIM)
        for field, size in enumerate(shapes.cardinalities())
    ]
    l2 = {"l2_reg_embedding": shapes.EMBEDDING_L2}
    linear = l2 | {"l2_reg_linear": 0}
    deep = linear | {"l2_reg_dnn": 0, "dnn_hidden_units": shapes.HIDDEN}
    crosses = deep | {"cross_num": shapes.CROSS_LAYERS, "l2_reg_cross": 0}
    models = {
        # Its DeepFM without deep part is FM, and with linear columns only it is LR.
        "lr": lambda: DeepFM(columns, [], use_fm=False, **(deep | {"dnn_hidden_units": ()})),
        "fm": lambda: DeepFM(columns, columns, **(deep | {"dnn_hidden_units": ()})),
        # Without FM and linear part it is DNN.
        "dnn": lambda: DeepFM([], columns, use_fm=False, **deep),
        "wide_deep": lambda: WDL(columns, columns, **deep),
        "deepfm": lambda: DeepFM(columns, columns, **deep),
        "ipnn": lambda: PNN(columns, **{k: v for k, v in deep.items() if k != "l2_reg_linear"}),
        "afm": lambda: AFM(
            columns, columns, attention_factor=shapes.AFM_ATTENTION_DIM, l2_reg_att=0, **linear
        ),
        # The models below have no linear term elsewhere.
        "dcn": lambda: DCN([], columns, cross_parameterization="vector", **crosses),
        "dcnv2": lambda: DCN([], columns, cross_parameterization="matrix", **crosses),
        "autoint_16": lambda: AutoInt(
            [],
            columns,
            att_layer_num=shapes.ATTENTION_LAYERS,
            att_head_num=shapes.ATTENTION_HEADS,
            **{k: v for k, v in deep.items() if k != "l2_reg_linear"},
        ),
        "afn": lambda: AFN(
            [],
            columns,
            ltl_hidden_size=shapes.LOG_NEURONS,
            afn_dnn_hidden_units=shapes.HIDDEN,
            l2_reg_dnn=0,
            **linear,
        ),
        "xdeepfm": lambda: xDeepFM(
            columns,
            columns,
            cin_layer_size=shapes.CIN_LAYERS,
            cin_split_half=False,
            cin_activation="linear",
            **deep,
        ),
        "fibinet": lambda: FiBiNET(
            columns, columns, reduction_ratio=shapes.SENET_REDUCTION, **deep
        ),
    }
    model = models[arguments.model]()
    optimizer = torch.optim.Adam(model.parameters(), lr=shapes.LEARNING_RATE)
    model.compile(optimizer, "binary_crossentropy")
    names = [column.name for column in columns]

    def load(folder: Path, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        data = np.load(folder / f"{split}.npz")
        return {name: data[name] for name in names}, data["label"].astype(np.float32)

    splits = {}

    def use(folder: str) -> dict[str, int]:
        splits.update({split: load(Path(folder), split) for split in ("train", "valid")})
        return {"rows": len(splits["train"][1])}

    def epoch() -> dict[str, float]:
        rows, labels = splits["train"]
        start = time.perf_counter()
        model.fit(dict(rows), labels, batch_size=arguments.batch_size, epochs=1, verbose=0)
        return {"rows": len(labels), "seconds": time.perf_counter() - start}

    def infer() -> dict[str, float]:
        rows, labels = splits["valid"]
        start = time.perf_counter()
        model.predict(dict(rows), arguments.batch_size)
        return {"rows": len(labels), "seconds": time.perf_counter() - start}

    def parameters() -> dict[str, int]:
        return {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    def auc() -> dict[str, float]:
        rows, labels = splits["valid"]
        scores = model.predict(dict(rows), arguments.batch_size)
        return {"auc": float(roc_auc_score(labels, scores.reshape(-1)))}

    use(arguments.folder)
    serve({"use": use, "epoch": epoch, "infer": infer, "auc": auc, "parameters": parameters})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
