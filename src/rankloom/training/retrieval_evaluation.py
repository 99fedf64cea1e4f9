"""Held-out items of a run: which users, with which settings, and where their targets stood."""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

from rankloom.data.sequence_store import SequenceData
from rankloom.evaluation.retrieval_metrics import Places
from rankloom.evaluation.retrieval_protocol import (
    RetrievalEvaluation,
    RetrievalEvaluationConfig,
    evaluate_retrieval,
)
from rankloom.retrieval.histories import HeldOut, Histories, IntArray
from rankloom.retrieval.trie import Trie
from rankloom.runs.atomic import replacing
from rankloom.training.retrieval_recipe import RetrievalRecipe


def held_out_name(split: str) -> HeldOut:
    """The split of held-out items called `split`.

    Raises:
        ValueError: there is none.
    """
    if split == "valid":
        return "valid"
    if split == "test":
        return "test"
    raise ValueError(f"no split {split!r} of held-out items; known: valid, test")


def evaluate_split(
    model: nn.Module,
    recipe: RetrievalRecipe,
    data: SequenceData,
    split: HeldOut,
    *,
    config: RetrievalEvaluationConfig,
    trie: Trie | None,
    device: torch.device,
    user_places: IntArray | None = None,
) -> RetrievalEvaluation:
    """Rank the held-out item of every user of a split; the order of users is that of `held_out`.

    Args:
        model: the model, on `device`.
        recipe: its recipe.
        data: the data set.
        split: valid or test.
        config: settings of the evaluation.
        trie: the catalogue, for generators.
        device: where the model is.
        user_places: [users] place of each user in the data set of the training, -1 for users that
            are new since; None: it is this one.
    """
    contexts, targets, users = data.histories.held_out(split)
    if user_places is not None:
        users = user_places[users]
    return evaluate_retrieval(
        model,
        contexts,
        targets,
        config,
        users=users,
        trie=trie,
        training_counts=data.histories.training().counts(),
        max_length=recipe.max_length,
        batch_size=recipe.training.evaluation_batch_size,
        # bf16 moves items of nearly equal score past each other; validation in training may.
        precision="float32",
        device=device,
    )


def validation_users(
    recipe: RetrievalRecipe, data: SequenceData
) -> tuple[Histories, IntArray, IntArray]:
    """Contexts, targets and users that the monitored metric is measured on."""
    contexts, targets, users = data.histories.held_out("valid")
    wanted = recipe.evaluation.validation_users
    if wanted is None or wanted >= len(targets):
        return contexts, targets, users
    drawn = np.sort(np.random.default_rng(recipe.seed).permutation(len(targets))[:wanted])
    lists = [contexts.of(int(place)) for place in drawn]
    return Histories.from_lists(lists, contexts.num_items), targets[drawn], users[drawn]


def validation_settings(recipe: RetrievalRecipe) -> RetrievalEvaluationConfig:
    """The recipe's evaluation with the monitored cutoff among its own, and its validation beams."""
    config = recipe.evaluation
    cutoff = recipe.training.monitor.partition("@")[2]
    monitored = {int(cutoff)} if cutoff.isdecimal() else set()
    return config.model_copy(
        update={
            "cutoffs": tuple(sorted({*config.cutoffs, *monitored})),
            "beams": config.validation_beams or config.beams,
            "slices": False,
        }
    )


def read_places(folder: str | Path, split: str) -> Places:
    """Where the targets of a run's users stood, as its record's metrics were made of.

    Raises:
        FileNotFoundError: the run was not evaluated on that split.
    """
    file = Path(folder) / f"places-{split}.parquet"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {folder}; evaluate the run on {split}")
    frame = pl.read_parquet(file)
    ids = frame["id_rank"].to_numpy() if "id_rank" in frame.columns else None
    return Places(frame["first"].to_numpy(), frame["size"].to_numpy(), ids)


def write_places(folder: Path, split: str, places: Places) -> None:
    """Write where the targets of a run's users stood into its folder."""
    columns = {"first": places.first, "size": places.size}
    if places.id_rank is not None:
        columns["id_rank"] = places.id_rank
    with replacing(folder / f"places-{split}.parquet") as part:
        pl.DataFrame(columns).write_parquet(part)
