"""A folder of semantic ids: what is written there, read again, and built from it.

It holds the ids (`SemanticIds`), `tokenizer.safetensors`, the vectors they were made of, what their
encoder has learned (`EncoderState`), the diagnostics and the items' titles.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankloom.config import parse_config, read_json_values
from rankloom.data.new_folder import new_folder
from rankloom.data.sequence_store import SequenceData
from rankloom.retrieval.diagnostics import TokenizerDiagnostics
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.items import FittedEncoder
from rankloom.retrieval.merges import token_vectors
from rankloom.retrieval.protocols import Tokenizer
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.catalog import build_tokenizer
from rankloom.retrieval.tokenizers.state import load_state
from rankloom.retrieval.trie import Trie
from rankloom.training.retrieval_recipe import RetrievalRecipe

TOKENIZER_FILE = "tokenizer.safetensors"
"""State of the tokenizer, in a folder of semantic ids."""
VECTORS_FILE = "vectors.safetensors"
"""`vectors` of the items, and `code_vectors` of the tokens where the tokenizer has some."""
DIAGNOSTICS_FILE = "diagnostics.json"
"""What the ids are like."""
TITLES_FILE = "titles.json"
"""Titles of the items, in their order: what a person is shown of an id."""


@dataclass(frozen=True)
class Tokenized:
    """Semantic ids of a catalogue, on disk."""

    folder: Path
    """Where they are."""
    ids: SemanticIds
    """The ids."""
    vectors: Float[Tensor, "items width"]
    """What they were made of."""
    code_vectors: Float[Tensor, "tokens dim"] | None
    """A vector of each token, where the tokenizer has them."""
    diagnostics: TokenizerDiagnostics
    """What the ids are like."""
    titles: tuple[str, ...]
    """Titles of the items, in their order, empty where an item has none; () where the folder was
    written without them."""

    @classmethod
    def open(cls, folder: str | Path) -> "Tokenized":
        """Read a folder that `write_ids` wrote.

        Raises:
            FileNotFoundError: it holds no semantic ids.
            ValueError: they are damaged.
        """
        path = Path(folder)
        ids = SemanticIds.load(path)
        try:
            tensors = load_file(path / VECTORS_FILE)
        except SafetensorError as error:
            raise ValueError(
                f"{path / VECTORS_FILE} is damaged: {error}; tokenize again with --fresh"
            ) from None
        values = read_json_values(path / DIAGNOSTICS_FILE)
        titles = path / TITLES_FILE
        return cls(
            path,
            ids,
            tensors["vectors"],
            tensors.get("code_vectors"),
            parse_config(TokenizerDiagnostics, values, str(path / DIAGNOSTICS_FILE)),
            tuple(read_json_values(titles)) if titles.is_file() else (),
        )


def load_tokenizer(recipe: RetrievalRecipe, tokenized: Tokenized) -> Tokenizer:
    """The tokenizer that made some ids, on the CPU, in evaluation mode."""
    assert recipe.tokenizer is not None
    tokenizer = build_tokenizer(recipe.tokenizer, tokenized.vectors.shape[1])
    assert isinstance(tokenizer, nn.Module)
    load_state(tokenizer, load_file(tokenized.folder / TOKENIZER_FILE))
    tokenizer.eval()
    return tokenizer


def write_ids(
    folder: Path,
    ids: SemanticIds,
    encoder: FittedEncoder,
    tokenizer: Tokenizer,
    diagnostics: TokenizerDiagnostics,
    titles: Sequence[str],
) -> Tokenized:
    """Write a folder of semantic ids, whole or not at all.

    Args:
        folder: where it goes.
        ids: the ids.
        encoder: what the items' vectors are of, with these vectors.
        tokenizer: what made the ids.
        diagnostics: what they are like.
        titles: of the items, in their order.
    """
    assert isinstance(tokenizer, nn.Module)
    code_vectors = token_vectors(tokenizer, ids)
    tensors = {"vectors": encoder.vectors.contiguous()}
    if code_vectors is not None:
        tensors["code_vectors"] = code_vectors.contiguous()
    with new_folder(folder) as part:
        save_file(tensors, part / VECTORS_FILE)
        state = {name: value.contiguous() for name, value in tokenizer.state_dict().items()}
        save_file(state, part / TOKENIZER_FILE)
        text = json.dumps(diagnostics.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (part / DIAGNOSTICS_FILE).write_text(text + "\n", encoding="utf-8")
        listed = json.dumps(list(titles), indent=0, ensure_ascii=False)
        (part / TITLES_FILE).write_text(listed + "\n", encoding="utf-8")
        encoder.state.save(part)
        ids.save(part)
    return Tokenized(folder, ids, encoder.vectors, code_vectors, diagnostics, tuple(titles))


def item_schema(
    data: SequenceData,
    tokenized: Tokenized | None,
    *,
    num_users: int,
) -> ItemSchema:
    """What a model is built for."""
    return ItemSchema(
        num_items=data.catalogue.num_items,
        num_users=num_users,
        ids=None if tokenized is None else tokenized.ids,
        vectors=None if tokenized is None else tokenized.vectors,
        code_vectors=None if tokenized is None else tokenized.code_vectors,
        attributes=data.catalogue.attributes if data.catalogue.attribute_names else None,
    )


def catalogue_trie(data: SequenceData, tokenized: Tokenized | None) -> Trie | None:
    """The trie of the ids; of items that share one, those taken more often in training first."""
    if tokenized is None:
        return None
    if tokenized.ids.items_hash != data.catalogue.items_hash:
        raise ValueError(
            f"the semantic ids in {tokenized.folder} are not of the items of {data.name}: the "
            "catalogue changed; tokenize it again, or append ids for the new items"
        )
    return Trie.build(tokenized.ids, priority=data.histories.training().counts())
