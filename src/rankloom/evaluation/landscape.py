"""How fast the loss rises around the weights of a model: curves, a plane, sharpest curvature.

Source: Li et al., NeurIPS 2018, arXiv:1712.09913 (filter-normalised random directions).
Equations, w one weight vector of the solution, d the same place of a random normal direction:
    filter-normalised     d <- d |w| / |d|
    curve                 r -> L(W + r D), for several directions D
    plane                 (a, b) -> L(W + a D_1 + b D_2)
    rise at r             mean of L(W + r D) - L(W) over directions and both signs of r
    largest eigenvalue    power iteration v <- H v / |H v| of the loss's Hessian H
So at r = 1 every weight vector has moved by its own length. A filter is a vector along the last
axis of a parameter: the weights of one output of a linear layer. Parameters of one axis or none
(biases, gains, scales) stay where they are, as in the source.

The weights of the network are moved. Embedding tables stay unless asked for: most of their rows
have had few events, so a random direction over them says what noise in rare ids costs, and a table
has many times the weights of the network.

The loss is the log loss of the logits over the rows given, summed over tasks, in evaluation mode
and float32. For a model that can stop at several depths it is the mean over its depths, so that all
of its weights count. Terms of a model's own objective are left out: models with different ones can
be set beside each other.

Moved weights are handed to the model for one call each (`torch.func.functional_call`); its own are
never written to, whatever interrupts it.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation.curvature import largest_eigenvalue
from rankloom.evaluation.landscape_loss import (
    MovedLoss,
    Weights,
    moved_parameters,
    random_direction,
)
from rankloom.evaluation.protocol import autocast, evaluation_mode
from rankloom.runs.record import Number


class LandscapeConfig(Config):
    """Where the loss is looked at."""

    radius: float = Field(1.0, gt=0)
    """How far to go; at 1 every weight vector moves by its own length."""
    num_directions: int = Field(5, ge=2)
    """Directions; the first two span the plane."""
    num_steps: int = Field(4, ge=1)
    """Steps from the solution to the radius, on a curve."""
    num_plane_steps: int = Field(3, ge=0)
    """The same in the plane; 0: no plane."""
    tables: bool = False
    """Whether embedding tables move too."""
    curvature: bool = False
    """Whether the largest eigenvalue of the Hessian is computed."""
    num_iterations: int = Field(30, ge=1)
    """Most power iterations."""
    seed: int = 0
    """Seed of the directions: equal for parameters of one name and shape in all models."""


class Rise(Config):
    """How much the loss rises at one distance."""

    radius: float
    """The distance."""
    mean: Number
    """Mean over directions and both signs."""
    deviation: Number
    """Standard deviation of the directions' means."""


class Landscape(Config):
    """The loss around the weights of one run."""

    run: str
    """Label of the run."""
    settings: LandscapeConfig
    """Where it was looked at."""
    rows: int = Field(ge=1)
    """Rows of the loss."""
    depths: int = Field(ge=1)
    """Depths whose loss is averaged."""
    parameters: int = Field(ge=1)
    """Weights that moved."""
    loss: Number
    """At the weights themselves."""
    positions: tuple[float, ...]
    """Places on a curve, from minus the radius to the radius."""
    curves: tuple[tuple[Number, ...], ...]
    """Loss at these places, by direction."""
    rises: tuple[Rise, ...]
    """By distance."""
    plane_positions: tuple[float, ...] = ()
    """Places along both sides of the plane."""
    plane: tuple[tuple[Number, ...], ...] = ()
    """Loss, a row per place along the second direction, a column per place along the first."""
    largest_eigenvalue: Number | None = None
    """The Hessian's eigenvalue of largest magnitude, with its sign; none: not computed."""


def loss_landscape(
    model: nn.Module,
    batches: Sequence[Batch],
    config: LandscapeConfig,
    *,
    run: str,
    device: str | torch.device = "cpu",
) -> Landscape:
    """Measure the loss around the weights of a model, which stay as they are.

    Args:
        model: a ranker, already on `device`.
        batches: the rows, with labels.
        config: where to look.
        run: label that the result carries.
        device: where the batches are moved to.

    Raises:
        ValueError: there are no rows or no labels, or nothing that could move.
    """
    place = torch.device(device)
    rows = [batch.to(place) for batch in batches if batch.size]
    if not rows:
        raise ValueError("the loss needs rows; got none")
    moved = moved_parameters(model, tables=config.tables)
    if not moved:
        raise ValueError("no weights to move: the model has none of two axes besides its tables")
    loss = MovedLoss(model, rows)
    with ExitStack() as around:
        around.enter_context(evaluation_mode(model))
        around.enter_context(autocast(place, "float32"))
        with torch.inference_mode():
            middle = float(loss.at({}))
            positions = _positions(config.radius, config.num_steps)
            curves = [
                _curve(loss, moved, _direction(moved, config.seed, number), positions, middle)
                for number in range(config.num_directions)
            ]
            plane_positions, plane = _plane(loss, moved, config, middle)
        eigenvalue = None
        if config.curvature:
            eigenvalue = largest_eigenvalue(
                loss, moved, seed=config.seed, num_iterations=config.num_iterations
            )
    return Landscape(
        run=run,
        settings=config,
        rows=sum(batch.size for batch in rows),
        depths=loss.num_depths,
        parameters=sum(weight.numel() for weight in moved.values()),
        loss=middle,
        positions=tuple(positions),
        curves=tuple(map(tuple, curves)),
        rises=tuple(_rises(positions, curves, middle)),
        plane_positions=tuple(plane_positions),
        plane=tuple(map(tuple, plane)),
        largest_eigenvalue=eigenvalue,
    )


def _positions(radius: float, num_steps: int) -> list[float]:
    return [radius * step / num_steps for step in range(-num_steps, num_steps + 1)]


def _direction(moved: dict[str, nn.Parameter], seed: int, number: int) -> Weights:
    return {name: random_direction(w, seed, number, name) for name, w in moved.items()}


def _added(moved: dict[str, nn.Parameter], *steps: tuple[float, Weights]) -> Weights:
    found = dict[str, Tensor](moved)
    for size, direction in steps:
        found = {name: weight + size * direction[name] for name, weight in found.items()}
    return found


def _curve(
    loss: MovedLoss,
    moved: dict[str, nn.Parameter],
    direction: Weights,
    positions: Sequence[float],
    middle: float,
) -> list[float]:
    return [middle if r == 0 else float(loss.at(_added(moved, (r, direction)))) for r in positions]


def _plane(
    loss: MovedLoss, moved: dict[str, nn.Parameter], config: LandscapeConfig, middle: float
) -> tuple[list[float], list[list[float]]]:
    if not config.num_plane_steps:
        return [], []
    places = _positions(config.radius, config.num_plane_steps)
    first, second = (_direction(moved, config.seed, number) for number in (0, 1))
    return places, [
        [
            middle if a == b == 0 else float(loss.at(_added(moved, (a, first), (b, second))))
            for a in places
        ]
        for b in places
    ]


def _rises(
    positions: Sequence[float], curves: Sequence[Sequence[float]], middle: float
) -> list[Rise]:
    found = []
    last = len(positions) - 1
    for index in range(len(positions) // 2 + 1, last + 1):
        rises = torch.tensor(
            [(curve[index] + curve[last - index]) / 2 - middle for curve in curves],
            dtype=torch.float64,
        )
        found.append(
            Rise(radius=positions[index], mean=float(rises.mean()), deviation=float(rises.std()))
        )
    return found
