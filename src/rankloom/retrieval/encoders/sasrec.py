"""The item table of a trained run, such as SASRec's."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from rankloom.retrieval.encoders.encoder import SequenceEncoderBase
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

MODEL_FILE = "model.safetensors"
"""Weights inside a run folder."""


class SasrecConfig(SequenceEncoderBase):
    """Collaborative vectors: the item table that a sequential model has learned.

    New items have none; as a part of a concatenation, they get zeros.
    """

    kind: Literal["sasrec"] = "sasrec"
    """Which encoder this is."""
    run: str
    """Run folder, or a safetensors file."""
    tensor: str = "embed.items.weight"
    """Name of the item table in it: [items, width], or with a row of padding before the first."""
    normalise: bool = False

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """The table's rows; zeros for items that are in none of the training sequences.

        The rows of items that no sequence has were never trained: they are noise. Without
        sequences, rows are taken as they are.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: it has no such tensor, or one of another catalogue.
        """
        path = self._file()
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if self.tensor not in names:
                raise ValueError(f"{path} has no tensor {self.tensor}; it has {', '.join(names)}")
            table = file.get_tensor(self.tensor)
        items = catalogue.num_items
        if table.ndim != 2 or table.shape[0] not in (items, items + 1):
            raise ValueError(
                f"{path}: tensor {self.tensor} has shape {tuple(table.shape)}; expected "
                f"{items} rows, one for each item of the catalogue, or one more for padding"
            )
        vectors = table[-items:].to(torch.float32) if items else table[:0].to(torch.float32)
        if histories is None:
            return vectors
        trained = torch.from_numpy(histories.counts() > 0)
        return torch.where(trained[:, None], vectors, 0.0)

    def cache_key(self) -> str:
        """The settings, and a hash of the run's weights."""
        with self._file().open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
        return f"{self.model_dump_json(exclude={'run'})} {weights}"

    def _file(self) -> Path:
        path = Path(self.run)
        file = path / MODEL_FILE if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"no such run: {path} (looked for {file})")
        return file
