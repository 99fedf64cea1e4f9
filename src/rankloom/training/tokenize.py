"""From a recipe to the semantic ids of its catalogue.

A folder of semantic ids holds the ids (`SemanticIds`), `tokenizer.safetensors`, the vectors they
were made of, the diagnostics and the items' titles. It is found again by a hash of everything it
depends on, the source included, so that recipes that differ in the generator alone share one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankloom.config import parse_config, read_json_values
from rankloom.data.new_folder import new_folder
from rankloom.data.sequence_store import SequenceData
from rankloom.retrieval.appending import append_items
from rankloom.retrieval.diagnostics import TokenizerDiagnostics, diagnose
from rankloom.retrieval.items import encode_items, vectors_hash
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
from rankloom.retrieval.tokenizers.state import load_state
from rankloom.runs.environment import current_commit
from rankloom.training.course import Progress
from rankloom.training.loop import select_device
from rankloom.training.loop import train as run_loop
from rankloom.training.retrieval_recipe import RetrievalRecipe
from rankloom.training.vector_batches import VectorBatches

TOKENIZERS_FOLDER = "tokenizers"
"""Folder of semantic ids inside the folder of runs."""
VECTORS_FOLDER = "item-vectors"
"""Folder of item vectors inside the folder of runs."""
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
        """Read a folder that `tokenize` or `append` wrote.

        Raises:
            FileNotFoundError: it holds no semantic ids.
            ValueError: they are damaged.
        """
        path = Path(folder)
        ids = SemanticIds.load(path)
        tensors = load_file(path / VECTORS_FILE)
        values = read_json_values(path / DIAGNOSTICS_FILE)
        titles = path / TITLES_FILE
        return cls(
            path,
            ids,
            tensors["vectors"],
            tensors.get("code_vectors"),
            parse_config(TokenizerDiagnostics, values, str(path / DIAGNOSTICS_FILE)),
            tuple(json.loads(titles.read_text(encoding="utf-8"))) if titles.is_file() else (),
        )


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
    vectors = item_vectors(recipe, data, Path(out))
    device = select_device(recipe.tokenizer_training.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        tokenizer = build_tokenizer(recipe.tokenizer, vectors.shape[1])
        _fit(tokenizer, recipe, _items(recipe, data, vectors, Path(out)), device, progress)
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
    return _write(folder, ids, vectors, tokenizer, diagnostics, data.catalogue.titles)


def append(
    recipe: RetrievalRecipe,
    longer: SequenceData,
    *,
    out: str | Path = "runs",
) -> Tokenized:
    """Ids for new items beside the published ones, without any training; those never change.

    Encoders such as TF-IDF depend on all texts: encoded together with new items, the published
    ones move a little. So the longer catalogue is encoded as a whole, and mapped by the affine map
    that takes the published items best (least squares) to the vectors that their ids were made of.
    With encoders that see each item alone (given vectors, sentences) that changes nothing.

    Args:
        recipe: the recipe of the published ids; made first where there are none.
        longer: the data set with the published items first, in their order, then the new ones.
        out: folder of runs.

    Raises:
        ValueError: the published items are not the first ones of `longer`, there is no new item,
            or no id is left for one.
    """
    published_data = SequenceData.open(recipe.dataset)
    old, new = published_data.catalogue.ids, longer.catalogue.ids
    if new[: len(old)] != old:
        raise ValueError(
            f"the first {len(old):,} items of {longer.name} must be those of "
            f"{published_data.name}, in order, with the new ones after them"
        )
    if len(new) == len(old):
        raise ValueError(f"{longer.name} holds no item that {published_data.name} has not")
    published = tokenize(recipe, out=out, data=published_data)
    folder = published.folder.with_name(
        f"{published.folder.name}-with-{longer.catalogue.items_hash[:8]}"
    )
    if (folder / FACTS_FILE).is_file():
        return Tokenized.open(folder)
    encoded = item_vectors(recipe, longer, Path(out))
    vectors = torch.cat([published.vectors, _moved(encoded, published.vectors)[len(old) :]])
    tokenizer = load_tokenizer(recipe, published)
    assignment = tokenizer.assign(vectors[len(old) :])
    ids = append_items(
        published.ids,
        assignment,
        tokenizer,
        vectors[len(old) :],
        unique=recipe.collisions.kind != "leave",
        items_hash=longer.catalogue.items_hash,
    )
    ids = replace(ids, vectors_hash=vectors_hash(vectors))
    diagnostics = diagnose(ids, vectors, tokenizer.assign(vectors))
    return _write(folder, ids, vectors, tokenizer, diagnostics, longer.catalogue.titles)


def load_tokenizer(recipe: RetrievalRecipe, tokenized: Tokenized) -> Tokenizer:
    """The tokenizer that made some ids, on the CPU, in evaluation mode."""
    assert recipe.tokenizer is not None
    tokenizer = build_tokenizer(recipe.tokenizer, tokenized.vectors.shape[1])
    assert isinstance(tokenizer, nn.Module)
    load_state(tokenizer, load_file(tokenized.folder / TOKENIZER_FILE))
    tokenizer.eval()
    return tokenizer


def ids_folder(recipe: RetrievalRecipe, data: SequenceData, out: Path) -> Path:
    """Where the ids of this recipe and data go."""
    assert recipe.tokenizer is not None
    key = [_deciding(recipe), data.data_hash, current_commit().source_hash]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return out / TOKENIZERS_FOLDER / f"{data.name}-{recipe.tokenizer.kind}-{digest}"


def item_vectors(
    recipe: RetrievalRecipe, data: SequenceData, out: Path
) -> Float[Tensor, "items width"]:
    """Vectors of the items by the recipe's encoder, from the training part of the sequences."""
    return encode_items(
        recipe.items,
        data.catalogue,
        data.histories.training(),
        cache=out / VECTORS_FOLDER,
        seed=recipe.seed,
    )


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


def _moved(
    encoded: Float[Tensor, "longer width"], published: Float[Tensor, "items width"]
) -> Float[Tensor, "longer width"]:
    """Vectors of a longer catalogue in the space of the published ones."""
    known = encoded[: len(published)]
    if torch.equal(known, published):
        return encoded
    # The constant takes up another mean. Directions that the items hardly have would be fitted to
    # rounding errors: the pseudo-inverse leaves them out.
    affine = torch.nn.functional.pad(encoded.double(), (0, 1), value=1.0)  # [longer, width + 1]
    inverse = torch.linalg.pinv(affine[: len(published)], rtol=1e-4)
    return (affine @ (inverse @ published.double())).float()


def _write(
    folder: Path,
    ids: SemanticIds,
    vectors: Float[Tensor, "items width"],
    tokenizer: Tokenizer,
    diagnostics: TokenizerDiagnostics,
    titles: Sequence[str],
) -> Tokenized:
    """The folder, whole or not at all."""
    assert isinstance(tokenizer, nn.Module)
    code_vectors = token_vectors(tokenizer, ids)
    tensors = {"vectors": vectors.contiguous()}
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
        ids.save(part)
    return Tokenized(folder, ids, vectors, code_vectors, diagnostics, tuple(titles))
