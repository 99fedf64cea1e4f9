"""From a longer catalogue to semantic ids beside the published ones."""

from dataclasses import replace
from pathlib import Path

import torch

from rankloom.data.sequence_store import SequenceData
from rankloom.retrieval.appending import append_items
from rankloom.retrieval.diagnostics import diagnose
from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.items import FittedEncoder, vectors_hash
from rankloom.retrieval.semantic_ids import FACTS_FILE
from rankloom.training.retrieval_recipe import RetrievalRecipe
from rankloom.training.tokenize import tokenize
from rankloom.training.tokenized import Tokenized, load_tokenizer, write_ids


def append(
    recipe: RetrievalRecipe,
    longer: SequenceData,
    *,
    out: str | Path = "runs",
) -> Tokenized:
    """Ids for new items beside the published ones, without any training; those never change.

    The new items alone are encoded, by what the encoder has learned of the published ones: these
    keep their vectors bit for bit, and what comes later moves nothing that was there.

    Args:
        recipe: the recipe of the published ids; made first where there are none.
        longer: the data set with the published items first, in their order, then the new ones.
        out: folder of runs.

    Raises:
        FileNotFoundError: the published ids lack what their encoder has learned.
        ValueError: the published items are not the first ones of `longer`, there is no new item,
            the encoder knows items by the training sequences alone, or no id is left for one.
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
        f"{published.folder.name}-with-{longer.catalogue.content_hash[:8]}"
    )
    if (folder / FACTS_FILE).is_file():
        return Tokenized.open(folder)
    state = EncoderState.load(published.folder)
    encoder = FittedEncoder(recipe.items, published.vectors, state)
    new_vectors = encoder.transform(longer.catalogue.after(len(old)))
    vectors = torch.cat([published.vectors, new_vectors])
    tokenizer = load_tokenizer(recipe, published)
    ids = append_items(
        published.ids,
        tokenizer.assign(new_vectors),
        tokenizer,
        new_vectors,
        unique=recipe.collisions.kind != "leave",
        items_hash=longer.catalogue.items_hash,
    )
    ids = replace(ids, vectors_hash=vectors_hash(vectors))
    diagnostics = diagnose(ids, vectors, tokenizer.assign(vectors))
    encoder = replace(encoder, vectors=vectors)
    return write_ids(folder, ids, encoder, tokenizer, diagnostics, longer.catalogue.titles)
