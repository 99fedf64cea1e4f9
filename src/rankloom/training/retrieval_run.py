"""A finished run of a retrieval model: its record, its model, and what one does with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rankloom.data.sequence_store import SequenceData
from rankloom.evaluation.retrieval_protocol import (
    RetrievalEvaluation,
    RetrievalEvaluationConfig,
)
from rankloom.retrieval.histories import HistoryBatch, IntArray, pad_histories
from rankloom.retrieval.recommender import best_items
from rankloom.retrieval.trie import Trie
from rankloom.runs.record import Record, read_record
from rankloom.training.loop import select_device
from rankloom.training.retrieval_evaluation import evaluate_split, held_out_name
from rankloom.training.retrieval_recipe import RetrievalRecipe, load_retrieval_recipe
from rankloom.training.run import MODEL_FILE, RECIPE_FILE
from rankloom.training.tokenized import Tokenized, catalogue_trie, item_schema

IDS_FOLDER = "semantic_ids"
"""Semantic ids inside a run folder."""


@dataclass(frozen=True)
class Recommendation:
    """What is recommended after one history."""

    items: list[str]
    """Ids of the items, best first."""
    titles: list[str]
    """Their titles, empty where an item has none."""
    scores: list[float]
    """Scores of the model, higher is better; of generators log-likelihoods."""
    unknown: int = 0
    """Items of the history that the catalogue does not have; the model was not given them."""


class RetrievalRun:
    """A finished run folder.

    Args:
        folder: the run folder.
        record: its record.
        recipe: its recipe.
        dataset: the data set it was trained on, or the folder of that data set.
        appended: semantic ids of a longer catalogue, and the data set that holds it: then that is
            recommended from. None: the catalogue of the training.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        recipe: RetrievalRecipe,
        dataset: SequenceData | Path,
        appended: Tokenized | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.recipe = recipe
        self._dataset = dataset
        self._appended = appended

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        dataset: SequenceData | str | Path | None = None,
        appended: str | Path | None = None,
    ) -> "RetrievalRun":
        """Open a run folder.

        Args:
            folder: the run folder.
            dataset: its data set, or where that lies now; None: where the recipe says.
            appended: folder of semantic ids that `append` made for a longer catalogue; `dataset`
                must then be the data set of that catalogue.

        Raises:
            FileNotFoundError: it holds no record (the run is not finished), or no ids.
            ValueError: the record or the recipe is not readable.
        """
        path = Path(folder)
        record = read_record(path)
        recipe = load_retrieval_recipe(path / RECIPE_FILE)
        if dataset is None:
            dataset = recipe.dataset
        opened = dataset if isinstance(dataset, SequenceData) else Path(dataset)
        return cls(
            path, record, recipe, opened, None if appended is None else Tokenized.open(appended)
        )

    @cached_property
    def dataset(self) -> SequenceData:
        """The data set, checked to be the one the run was trained on.

        Raises:
            FileNotFoundError: it is not where the recipe says.
            ValueError: it is another one.
        """
        given = self._dataset
        opened = given if isinstance(given, SequenceData) else SequenceData.open(given)
        if self._appended is not None:
            self._check_appended(opened, self._appended)
        elif opened.data_hash != self.record.dataset.data_hash:
            raise ValueError(
                f"{opened.name} is not the data set of {self.folder}: its hash is "
                f"{opened.data_hash}, the run was trained on {self.record.dataset.data_hash}; the "
                "catalogue or the sequences changed since (for new items, append ids)"
            )
        return opened

    @cached_property
    def tokenized(self) -> Tokenized | None:
        """The semantic ids that are decoded; None for models without any.

        Raises:
            FileNotFoundError: they are not in the run folder.
        """
        if self.recipe.tokenizer is None:
            return None
        return self._appended or Tokenized.open(self.folder / IDS_FOLDER)

    @cached_property
    def trie(self) -> Trie | None:
        """The catalogue of the ids, on the CPU; None for models without any."""
        return catalogue_trie(self.dataset, self.tokenized)

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return select_device(self.recipe.training.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its best weights, in evaluation mode.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: the weights are damaged.
        """
        users = self.record.dataset.rows["train"]
        schema = item_schema(self.dataset, self.tokenized, num_users=users)
        model = self.recipe.entry().build(self.recipe.settings(), schema)
        path = self.folder / MODEL_FILE
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; train the recipe anew") from None
        model.load_state_dict(weights)
        return model.to(self.device).eval()

    def evaluate(
        self, split: str = "test", *, config: RetrievalEvaluationConfig | None = None
    ) -> RetrievalEvaluation:
        """Full ranking of the held-out items of a split.

        Args:
            split: valid or test.
            config: settings in place of the recipe's.

        Raises:
            ValueError: no such split.
        """
        return evaluate_split(
            self.model,
            self.recipe,
            self.dataset,
            held_out_name(split),
            config=self.recipe.evaluation if config is None else config,
            trie=self.trie,
            device=self.device,
            user_places=None if self._appended is None else self._numbers(self.dataset.users) - 1,
        )

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        count: int = 10,
        blocked: Iterable[str] = (),
        exclude_history: bool | None = None,
        users: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The best items of the catalogue after each history.

        Items of a history that the catalogue does not have are left out and counted. An empty
        history is allowed: the model says what it says of a user whom it knows nothing of.

        Args:
            histories: item ids, oldest first, one list for each request.
            count: items wanted of each; fewer come where the catalogue has no more.
            blocked: ids of items that nobody may get.
            exclude_history: whether items of a history may not be recommended after it; None: as
                the recipe's evaluation says.
            users: user ids, for models that know users; unknown ones are treated as new. With
                appended ids all are, unless the recipe's data set is still that of the training.

        Returns:
            One recommendation for each history, in order.

        Raises:
            ValueError: `count` is below 1, a blocked item is unknown, there is not one user for
                each history, or the data set is not the run's.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1; got {count}")
        if users is not None and len(users) != len(histories):
            raise ValueError(
                f"one user for each history: got {len(users)} users, {len(histories)} histories"
            )
        catalogue = self.dataset.catalogue
        barred = self._blocked_numbers(blocked)
        if exclude_history is None:
            exclude_history = self.recipe.evaluation.exclude_history
        numbers = [catalogue.numbers_of(history) for history in histories]
        numbered = None if users is None else self._numbers(users)
        answers: list[Recommendation] = []
        step = self.recipe.training.evaluation_batch_size
        for start in range(0, len(histories), step):
            rows = slice(start, start + step)
            known = [items[items > 0] for items in numbers[rows]]
            batch = HistoryBatch(
                pad_histories(known, self.recipe.max_length),
                users=None if numbered is None else torch.from_numpy(numbered[rows]),
            ).to(self.device)
            parts = [barred.expand(batch.size, -1)]
            if exclude_history:
                parts.append(pad_histories(known, max(1, *(items.size for items in known))))
            items, scores = best_items(
                self.model,
                batch,
                count,
                trie=self._trie_on_device,
                mode=self.recipe.evaluation.mode,
                beams=self.recipe.evaluation.beams,
                renormalise=self.recipe.evaluation.renormalise,
                blocked=torch.cat(parts, 1).to(self.device),
            )
            for row, given in enumerate(numbers[rows]):
                there = items[row] > 0
                best = items[row][there].tolist()
                answers.append(
                    Recommendation(
                        catalogue.ids_of(best),
                        [catalogue.titles[number - 1] for number in best],
                        scores[row][there].tolist(),
                        int((given == 0).sum()),
                    )
                )
        return answers

    def _numbers(self, users: Sequence[str]) -> IntArray:
        """[users] numbers that users had in the training; 0 for those it did not know."""
        if self._appended is None:
            return self.dataset.user_numbers(users)
        # The longer data set may number its users otherwise.
        trained = self._training_data
        if trained is None:
            return np.zeros(len(users), np.int64)
        return trained.user_numbers(users)

    @cached_property
    def _training_data(self) -> SequenceData | None:
        """The data set of the training; None where the recipe's is not there or has changed."""
        try:
            found = SequenceData.open(self.recipe.dataset)
        except (FileNotFoundError, ValueError):
            return None
        return found if found.data_hash == self.record.dataset.data_hash else None

    @cached_property
    def _trie_on_device(self) -> Trie | None:
        return None if self.trie is None else self.trie.to(self.device)

    def _blocked_numbers(self, blocked: Iterable[str]) -> torch.Tensor:
        """[1, blocked] numbers of the items, at least one column."""
        ids = list(blocked)
        numbers = self.dataset.catalogue.numbers_of(ids)
        unknown = [item for item, number in zip(ids, numbers, strict=True) if number == 0]
        if unknown:
            raise ValueError(
                f"{len(unknown)} blocked items are not in the catalogue, such as {unknown[0]!r}"
            )
        return torch.from_numpy(numbers)[None] if ids else torch.zeros(1, 1, dtype=torch.int64)

    def _check_appended(self, data: SequenceData, appended: Tokenized) -> None:
        """The appended ids are of this data set, and begin with the ids of the training."""
        if self.recipe.tokenizer is None:
            raise ValueError(
                f"{self.record.model} scores items and reads no semantic ids; for new items train "
                "it again"
            )
        trained = Tokenized.open(self.folder / IDS_FOLDER).ids
        kept = appended.ids.codes[: trained.num_items]
        if (
            appended.ids.level_sizes != trained.level_sizes
            or kept.shape != trained.codes.shape
            or (kept != trained.codes).any()
            or (appended.ids.merges != trained.merges).any()
        ):
            raise ValueError(
                f"the ids in {appended.folder} do not begin with those that {self.folder} was "
                "trained on; append to the ids of its recipe"
            )
        if appended.ids.items_hash != data.catalogue.items_hash:
            raise ValueError(
                f"the ids in {appended.folder} are not of the items of {data.name}; give the data "
                "set that they were appended for"
            )
