"""A recipe of a retrieval model: from the catalogue and the sequences to a model and its figures.

```toml
name = "rq-kmeans-decoder-beauty"
dataset = "data/amazon-beauty/sequences"
seed = 1

[items]                       # what item vectors are made of
kind = "tfidf"

[tokenizer]                   # what makes semantic ids of them; models that score items need none
kind = "rq_kmeans"

[collisions]                  # what becomes of items whose ids are the same
kind = "dedup"

[model]
name = "decoder"

[training]
epochs = 50
```

A recipe may name a `base`, as other recipes do (`rankloom.training.recipe`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from rankloom.config import parse_config
from rankloom.evaluation.retrieval_protocol import RetrievalEvaluationConfig
from rankloom.retrieval.collisions import CollisionConfig, DedupConfig
from rankloom.retrieval.encoders import EncoderConfig, TfidfConfig
from rankloom.retrieval.merges import SemanticBPEConfig
from rankloom.retrieval.tokenizers.catalog import TokenizerConfig
from rankloom.training.config import CosineSchedule, TrainingConfig
from rankloom.training.model_recipe import ModelRecipe
from rankloom.training.recipe import recipe_file_values

DEFAULT_MAX_LENGTH = 50
"""Newest items that a model is given whose config does not say."""


class MergesConfig(SemanticBPEConfig):
    """SemanticBPE, and what it is learned from."""

    meaning: Literal["codes", "items"] = "codes"
    """Whose vectors say what a token means: the tokenizer's own of each code, or the mean of the
    items that hold the code."""
    weighted: bool = False
    """Whether an item's pairs count as often as it occurs in training, in place of once."""


class RetrievalRecipe(ModelRecipe):
    """One run of a retrieval model on a sequence data set."""

    RETRIEVES = True
    EXAMPLE = "decoder"

    items: EncoderConfig = TfidfConfig()
    """Encoder of the items, for tokenizers and models that read item vectors."""
    collaborative: EncoderConfig | None = None
    """Encoder of further item vectors, learned from sequences, for tokenizers that want such."""
    tokenizer: TokenizerConfig | None = None
    """What makes semantic ids; None: the model needs none."""
    tokenizer_training: TrainingConfig = TrainingConfig(
        epochs=200, batch_size=1024, schedule=CosineSchedule()
    )
    """How a tokenizer with a loss is trained; there is no validation, the last weights are kept."""
    collisions: CollisionConfig = DedupConfig()
    """What becomes of items whose codes are the same."""
    merges: MergesConfig | None = None
    """Pairs of tokens that become one (SemanticBPE); None: none."""
    training: TrainingConfig = TrainingConfig(
        batch_size=256, evaluation_batch_size=256, monitor="ndcg@10", patience=5
    )
    """How the model is trained; models that only count skip it."""
    evaluation: RetrievalEvaluationConfig = RetrievalEvaluationConfig()
    """Decoding and figures."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        entry = self.entry()
        if "semantic_ids" in entry.requires and self.tokenizer is None:
            raise ValueError(
                f'{entry.name} needs semantic ids: add a tokenizer, such as kind = "rq_kmeans" '
                "under [tokenizer]"
            )
        if self.tokenizer is None and self.merges is not None:
            raise ValueError("merges are of the tokens of semantic ids; add a tokenizer")
        return self

    @property
    def max_length(self) -> int:
        """Newest items of a history that the model reads."""
        return int(getattr(self.settings(), "max_length", DEFAULT_MAX_LENGTH))


def load_retrieval_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RetrievalRecipe:
    """Read a recipe, with dotted `key=value` overrides as `--set` gives them.

    Raises:
        FileNotFoundError: there is no such file, or no such base.
        ValueError: what is wrong, one line per problem.
    """
    return parse_config(RetrievalRecipe, recipe_file_values(path, overrides), str(path))
