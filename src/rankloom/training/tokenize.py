"""From a recipe to the semantic ids of its catalogue.

The folder of semantic ids (`rankloom.training.tokenized`) is found again by a hash of everything it
depends on, the source included, so that recipes that differ in the generator alone share one.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.data.new_folder import one_at_a_time
from rankloom.data.sequence_store import SequenceData
from rankloom.retrieval.diagnostics import diagnose
from rankloom.retrieval.items import encode_items, fit_items, vectors_hash
from rankloom.retrieval.merges import (
    learn_merges,
    mean_item_vectors,
    token_vectors,
    with_merges,
)
from rankloom.retrieval.protocols import (
    FittedTokenizer,
    MergingTokenizer,
    Tokenizer,
    TokenizerItems,
    TrainedTokenizer,
)
from rankloom.retrieval.semantic_ids import FACTS_FILE, SemanticIds
from rankloom.retrieval.tokenizers.catalog import build_tokenizer
from rankloom.runs.environment import current_commit
from rankloom.training.course import Progress
from rankloom.training.loop import select_device
from rankloom.training.loop import train as run_loop
from rankloom.training.retrieval_recipe import RetrievalRecipe
from rankloom.training.tokenized import Tokenized, write_ids
from rankloom.training.vector_batches import VectorBatches

TOKENIZERS_FOLDER = "tokenizers"
"""Folder of semantic ids inside the folder of runs."""
VECTORS_FOLDER = "item-vectors"
"""Folder of item vectors inside the folder of runs."""


def tokenize(
    recipe: RetrievalRecipe,
    *,
    out: str | Path = "runs",
    data: SequenceData | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Tokenized:
    """Make the semantic ids of a recipe's catalogue, or find those made before.

    Args:
        recipe: the recipe.
        out: folder of runs: ids go into `tokenizers/<tokenizer>-<hash>` there.
        data: the data set; None: where the recipe says.
        fresh: make them again.
        progress: called now and then while a tokenizer is trained.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: the recipe has no tokenizer, or the catalogue lacks what it needs.
    """
    if recipe.tokenizer is None:
        raise ValueError(f"{recipe.name} has no tokenizer; add one under [tokenizer]")
    data = SequenceData.open(recipe.dataset) if data is None else data
    folder = ids_folder(recipe, data, Path(out))
    if not fresh and (folder / FACTS_FILE).is_file():
        return Tokenized.open(folder)
    with one_at_a_time(folder):
        # Another process may have made them while this one waited.
        if not fresh and (folder / FACTS_FILE).is_file():
            return Tokenized.open(folder)
        return _make(recipe, data, folder, Path(out), progress)


def ids_folder(recipe: RetrievalRecipe, data: SequenceData, out: Path) -> Path:
    """Where the ids of this recipe and data go.

    Encoders that read a run or a pretrained model count by its weights too.

    Raises:
        FileNotFoundError: there is no such run or model.
        ImportError: the encoder needs an extra that is not installed.
    """
    assert recipe.tokenizer is not None
    encoders = [recipe.items, *([] if recipe.collaborative is None else [recipe.collaborative])]
    weights = [encoder.cache_key() for encoder in encoders]
    key = [_deciding(recipe), weights, data.data_hash, current_commit().source_hash]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return out / TOKENIZERS_FOLDER / f"{data.name}-{recipe.tokenizer.kind}-{digest}"


def _make(
    recipe: RetrievalRecipe,
    data: SequenceData,
    folder: Path,
    out: Path,
    progress: Callable[[Progress], None] | None,
) -> Tokenized:
    """Fit the encoder and the tokenizer, settle collisions, merge, and write the folder."""
    assert recipe.tokenizer is not None
    encoder = fit_items(
        recipe.items,
        data.catalogue,
        data.histories.training(),
        cache=out / VECTORS_FOLDER,
        seed=recipe.seed,
    )
    vectors = encoder.vectors
    device = select_device(recipe.tokenizer_training.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        tokenizer = build_tokenizer(recipe.tokenizer, vectors.shape[1])
        _fit(tokenizer, recipe, _items(recipe, data, vectors, out), device, progress)
    assignment = tokenizer.assign(vectors)
    resolved = recipe.collisions.resolve(assignment, tokenizer, vectors)
    ids = SemanticIds(
        resolved.codes,
        resolved.level_sizes,
        tokenizer=recipe.tokenizer.kind,
        vectors_hash=vectors_hash(vectors),
        items_hash=data.catalogue.items_hash,
        settings=_deciding(recipe),
    )
    ids = _merge(ids, recipe, data, tokenizer, vectors)
    diagnostics = diagnose(ids, vectors, assignment)
    return write_ids(folder, ids, encoder, tokenizer, diagnostics, data.catalogue.titles)


def _deciding(recipe: RetrievalRecipe) -> dict[str, object]:
    """The part of a recipe that decides its ids."""
    names = ("items", "collaborative", "tokenizer", "tokenizer_training", "collisions", "merges")
    values = recipe.model_dump(mode="json")
    return {"seed": recipe.seed, **{name: values[name] for name in names}}


def _items(
    recipe: RetrievalRecipe, data: SequenceData, vectors: Float[Tensor, "items width"], out: Path
) -> TokenizerItems:
    catalogue = data.catalogue
    training = data.histories.training()
    collaborative = None
    if recipe.collaborative is not None:
        collaborative = encode_items(
            recipe.collaborative,
            catalogue,
            training,
            cache=out / VECTORS_FOLDER,
            seed=recipe.seed,
        )
    return TokenizerItems(
        vectors,
        attributes=catalogue.attributes if catalogue.attribute_names else None,
        attribute_names=catalogue.attribute_names,
        histories=training,
        collaborative=collaborative,
    )


def _fit(
    tokenizer: Tokenizer,
    recipe: RetrievalRecipe,
    items: TokenizerItems,
    device: torch.device,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Fit or train the tokenizer, and leave it on the CPU in evaluation mode."""
    assert isinstance(tokenizer, nn.Module)
    generator = torch.Generator().manual_seed(recipe.seed)
    config = recipe.tokenizer_training
    if isinstance(tokenizer, TrainedTokenizer):
        tokenizer.start(items, generator)
        batches = VectorBatches(
            items.vectors.to(device), config.batch_size, epochs=config.epochs, seed=recipe.seed
        )
        run_loop(tokenizer, batches, config, evaluate=None, seed=recipe.seed, progress=progress)
    elif isinstance(tokenizer, FittedTokenizer):
        tokenizer.fit(items, generator)
    tokenizer.cpu().eval()


def _merge(
    ids: SemanticIds,
    recipe: RetrievalRecipe,
    data: SequenceData,
    tokenizer: Tokenizer,
    vectors: Float[Tensor, "items width"],
) -> SemanticIds:
    """The ids with merges, where the tokenizer learns its own or the recipe has some.

    Raises:
        ValueError: both.
    """
    config = recipe.merges
    if isinstance(tokenizer, MergingTokenizer):
        if config is not None:
            raise ValueError(f"{ids.tokenizer} learns merges of its own; leave [merges] out")
        return with_merges(ids, tokenizer.learn_merges(ids, data.histories.training()))
    if config is None:
        return ids
    meaning = (
        mean_item_vectors(ids, vectors)
        if config.meaning == "items"
        else token_vectors(tokenizer, ids)
    )
    weights = data.histories.training().counts() if config.weighted else None
    return with_merges(ids, learn_merges(ids, meaning, config, weights))
