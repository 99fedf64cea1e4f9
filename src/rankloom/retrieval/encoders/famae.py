"""The field embeddings of a trained FAMAE run, side by side."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from rankloom.retrieval.encoders.encoder import SequenceEncoderBase
from rankloom.retrieval.encoders.sasrec import MODEL_FILE
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


class FamaeConfig(SequenceEncoderBase):
    """Vectors of `retrieval.tokenizers.famae`: what ReSID fits its tokenizer on.

    An item is known by its number's embedding too, which a new item has none of: as a part of a
    concatenation, new items get zeros.
    """

    kind: Literal["famae"] = "famae"
    """Which encoder this is."""
    run: str
    """Run folder of the model `famae`, or a safetensors file."""

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """The embeddings of each item's fields, the item number's first.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: it is of another model or another catalogue.
        """
        path = self._file()
        state = load_file(path)
        if "fields" not in state:
            raise ValueError(f"{path} is no run of the model famae: it has no tensor fields")
        fields = state["fields"]  # [items + 1, fields]
        if len(fields) != catalogue.num_items + 1:
            raise ValueError(
                f"{path} was trained on {len(fields) - 1} items; the catalogue has "
                f"{catalogue.num_items}"
            )
        columns = fields[1:].unbind(1)
        return torch.cat(
            [state[f"tables.{number}"][values] for number, values in enumerate(columns)], dim=1
        )

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
