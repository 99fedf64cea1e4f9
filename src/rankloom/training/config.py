"""Every setting of the training loop, by name. Defaults follow the field's tuned benchmarks."""

from typing import Annotated, Literal

from pydantic import Field

from rankloom.config import Config


class TableAdam(Config):
    """Dense Adam over every row of every table, with table-wide L2 in the same pass."""

    kind: Literal["adam"] = "adam"
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the tables; None: the training config's."""


class RowWiseAdagrad(Config):
    """One accumulator per row; only rows in the batch are touched. For tables too big for Adam."""

    kind: Literal["row_wise_adagrad"] = "row_wise_adagrad"
    learning_rate: float = Field(0.02, gt=0)
    """Learning rate of the tables."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the accumulator."""


class LazyAdam(Config):
    """Adam that updates only the rows in the batch; bias correction counts each row's own steps."""

    kind: Literal["lazy_adam"] = "lazy_adam"
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the tables; None: the training config's."""


TableOptimizer = Annotated[TableAdam | RowWiseAdagrad | LazyAdam, Field(discriminator="kind")]


class PlateauSchedule(Config):
    """Multiply the learning rate when the monitored metric stops improving."""

    kind: Literal["plateau"] = "plateau"
    factor: float = Field(0.1, gt=0, lt=1)
    """Multiplier on an evaluation without improvement."""
    min_learning_rate: float = Field(1e-6, ge=0)
    """Floor."""


class ConstantSchedule(Config):
    """Keep the learning rate."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Config):
    """Linear warm-up, then half a cosine down over all planned steps."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the end."""


Schedule = Annotated[
    PlateauSchedule | ConstantSchedule | CosineSchedule, Field(discriminator="kind")
]


class ProportionalSampling(Config):
    """Every row once per epoch: a scenario is seen as often as it has rows."""

    kind: Literal["proportional"] = "proportional"

    @property
    def scenario_power(self) -> None:
        """What the loader takes: no power, each row once."""
        return None


class BalancedSampling(Config):
    """As many draws per epoch as there are rows, with small scenarios above their share."""

    kind: Literal["balanced"] = "balanced"
    power: float = Field(0.0, ge=0, le=1)
    """The share of a scenario is proportional to its rows to this power: 0 draws every scenario
    equally often, 1 as often as it has rows."""

    @property
    def scenario_power(self) -> float:
        """What the loader takes."""
        return self.power


Sampling = Annotated[ProportionalSampling | BalancedSampling, Field(discriminator="kind")]
ScenarioWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(Config):
    """Settings of `rankloom.training.loop.train`."""

    epochs: int = Field(100, gt=0)
    """Most epochs; early stopping usually ends the run sooner."""
    batch_size: int = Field(4096, gt=1)
    """Rows of a training batch."""
    evaluation_batch_size: int = Field(16384, gt=0)
    """Rows of a batch at evaluation."""
    sampling: Sampling = ProportionalSampling()
    """How often the rows of each scenario are drawn."""
    scenario_weights: dict[str, ScenarioWeight] = Field(default_factory=dict)
    """Weight of a scenario's rows in the loss, beside their own weights; those not named weigh 1.
    Metrics are not weighted by it."""
    field_dropout: dict[str, Share] = Field(default_factory=dict)
    """Share of training rows, drawn anew in every batch, in which a field is switched off."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = Field(1e-8, gt=0)
    """Adam's epsilon."""
    embedding_l2: float = Field(0.0, ge=0)
    """lambda of (lambda/2) * sum(table^2) over every embedding table (in-batch rows with sparse
    table optimizers)."""
    network_l2: float = Field(0.0, ge=0)
    """lambda of the same penalty on all other parameters."""
    table_optimizer: TableOptimizer = TableAdam()
    """Optimizer of the embedding tables."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest norm of all gradients together; None: no clipping."""
    schedule: Schedule = PlateauSchedule()
    """Learning-rate schedule."""
    monitor: str = "auc"
    """Validation metric that decides on schedule, stopping and the best checkpoint."""
    monitor_mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    min_delta: float = Field(1e-6, ge=0)
    """Change that counts as an improvement."""
    patience: int = Field(2, gt=0)
    """Evaluations without improvement after which training stops."""
    evaluations_per_epoch: int = Field(1, gt=0)
    """Evaluations in each epoch."""
    precision: Literal["float32", "bf16"] = "float32"
    """float32, or bf16 autocast of the dense part; tables and optimizer state stay float32."""
    compile: bool = False
    """Compile the dense part with torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA when there is one."""
    watch_gradients: tuple[str, ...] = ()
    """Patterns over module paths, such as `layers.*.streams.0`: the gradient norm of each goes into
    the history as `gradient_norm/<pattern>`."""
    checkpoint_steps: int | None = Field(None, gt=0)
    """Steps between checkpoints for resuming; None: one at every evaluation."""
