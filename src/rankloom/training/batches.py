"""Training batches as the training config wants them.

The loader draws the rows. Here their weights are multiplied by those of their scenarios, and
fields are switched off at random. Both happen before the model sees the batch, so they hold for
models with an objective of their own too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from rankloom.batch import Batch
from rankloom.data.loader import Loader
from rankloom.data.store import StoredSplit
from rankloom.data.switch_off import FieldDropout
from rankloom.schema import Schema
from rankloom.training.config import TrainingConfig
from rankloom.training.history_batches import HistoryBatches
from rankloom.training.resume import BatchSource
from rankloom.training.vector_batches import VectorBatches


class ScenarioWeights:
    """Multiplies the weight of every row by that of its scenario; rows without one have weight 1.

    Args:
        schema: of the batches.
        weights: scenario -> weight; scenarios that are not named weigh 1. Without any, batches
            stay as they are.

    Raises:
        ValueError: the data have no scenarios, a name is none of them, or all of them weigh 0.
    """

    def __init__(self, schema: Schema, weights: Mapping[str, float]) -> None:
        self._weights: torch.Tensor | None = None
        if not weights:
            return
        _check_scenarios(schema, "training.scenario_weights")
        unknown = [name for name in weights if name not in schema.scenarios]
        if unknown:
            raise ValueError(
                f"training.scenario_weights: no scenario {', '.join(unknown)}; "
                f"the scenarios are {', '.join(schema.scenarios)}"
            )
        values = [weights.get(name, 1.0) for name in schema.scenarios]
        if not any(values[1:]):  # rows of no scenario, the first, are not worth training on alone
            raise ValueError("training.scenario_weights: one must be above 0; all scenarios have 0")
        self._weights = torch.tensor(values, dtype=torch.float32)  # [scenarios]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its rows weighted."""
        if self._weights is None or batch.scenario is None:
            return batch
        if self._weights.device != batch.scenario.device:  # once, not in every step
            self._weights = self._weights.to(batch.scenario.device)
        weight = self._weights.index_select(0, batch.scenario)  # [batch]
        return replace(batch, weight=weight if batch.weight is None else weight * batch.weight)


class TrainingBatches:
    """A loader's batches, weighted by scenario and with fields dropped, as a config says.

    Everything but the batches is the loader's. What a batch holds depends on (seed, epoch,
    position) alone, so a training that is taken up anywhere goes on exactly.

    Args:
        split: training rows.
        config: training settings; `batch_size`, `sampling`, `scenario_weights` and
            `field_dropout` are read here.
        seed: seed of the order and of the fields that are dropped.
        device: where batches are delivered.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: as `Loader`, `ScenarioWeights` and `FieldDropout`.
    """

    def __init__(
        self,
        split: StoredSplit,
        config: TrainingConfig,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_settings(split.schema, config)
        self.config = config
        self.loader = Loader(
            split,
            config.batch_size,
            shuffle=True,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            scenario_power=config.sampling.scenario_power,
        )
        self._weigh = ScenarioWeights(split.schema, config.scenario_weights)
        self._drop = FieldDropout(split.schema, config.field_dropout, seed)

    @property
    def order(self) -> str:
        """How rows are ordered: `full`, `block` or `balanced`."""
        return self.loader.order

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.loader.batch_size

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """As `Loader.set_epoch`."""
        self.loader.set_epoch(epoch)

    def state(self) -> dict[str, int]:
        """As `Loader.state`."""
        return self.loader.state()

    def restore(self, state: dict[str, int]) -> None:
        """As `Loader.restore`."""
        self.loader.restore(state)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the epoch."""
        for batch in self.loader:
            place = self.loader.state()
            dropped = self._drop(batch, place["epoch"], place["position"], place["rank"])
            yield self._weigh(dropped)


def check_settings(schema: Schema, config: TrainingConfig) -> None:
    """Check what the config says of scenarios and fields against a data set.

    Raises:
        ValueError: a name is unknown, all scenarios weigh 0, or there are no scenarios.
    """
    if config.sampling.scenario_power is not None:
        _check_scenarios(schema, "training.sampling")
    ScenarioWeights(schema, config.scenario_weights)
    FieldDropout(schema, config.field_dropout, seed=0)


ROW_SETTINGS = ("sampling", "scenario_weights", "field_dropout")
"""Settings that change the rows of a table."""


def check_applied(loader: BatchSource, config: TrainingConfig) -> None:
    """Check that a loader does what the config says of rows, which the loop does not do.

    Raises:
        ValueError: the config has settings that only `TrainingBatches` follows, or the loader
            has others.
    """
    if isinstance(loader, HistoryBatches | VectorBatches):
        _check_without_table(config)
    followed = loader.config if isinstance(loader, TrainingBatches) else TrainingConfig()
    if any(getattr(followed, name) != getattr(config, name) for name in ROW_SETTINGS):
        raise ValueError(
            "sampling, scenario_weights and field_dropout change the batches; give the loop "
            "rankloom.training.batches.TrainingBatches of this config, or leave them out"
        )


def _check_without_table(config: TrainingConfig) -> None:
    """Sequences and item vectors have no scenarios and no fields, and no two batches one shape."""
    default = TrainingConfig()
    changed = [
        f"training.{name}"
        for name in (*ROW_SETTINGS, "compile")
        if getattr(config, name) != getattr(default, name)
    ]
    if changed:
        raise ValueError(
            f"{', '.join(changed)}: for models of rows of a table only, not for item sequences or "
            "item vectors; leave it out"
        )


def _check_scenarios(schema: Schema, setting: str) -> None:
    if not schema.scenarios:
        raise ValueError(
            f"{setting} needs scenarios and the data set has none; name their column as "
            "roles.scenario in its table schema, or leave the setting out"
        )
