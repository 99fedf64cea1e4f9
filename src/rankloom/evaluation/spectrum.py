"""How many dimensions the inputs of a layer use: their singular values.

The input of a module over some rows, [rows, tokens, dim], is looked at in two ways:

- `rows`: one vector of tokens * dim numbers per row (an input [rows, dim] as it is);
- `tokens`: one vector of dim numbers per token of every row (inputs with tokens only).

The mean vector is taken off first, so what all rows share counts for nothing, and singular values s
are divided by the largest. With p = s / sum(s) and v = s^2 / sum(s^2):

    effective rank (Roy and Vetterli 2007)   exp(-sum p ln p)
    participation ratio                      1 / sum v^2
    variance share of the first k            sum of the k largest v

All three are undefined (NaN) for an input that is the same for all vectors.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation.protocol import autocast, evaluation_mode
from rankloom.runs.record import Number

View = Literal["rows", "tokens"]


class Spectrum(Config):
    """Singular values of a set of vectors, and what follows from them."""

    view: View
    """Whether a vector is a whole row or one token."""
    vectors: int = Field(ge=1)
    """Number of vectors."""
    width: int = Field(ge=1)
    """Length of a vector."""
    singular_values: tuple[float, ...]
    """Largest first, divided by the largest; min(vectors, width) of them. All 0 when undefined."""
    effective_rank: Number
    """exp of the entropy of the singular values, between 1 and their number."""
    participation_ratio: Number
    """One over the sum of squared variance shares, between 1 and their number."""
    variance_share: dict[int, Number]
    """k -> share of the variance in the first k directions, for k = 1, 2, 4, 8 and so on."""


def spectra(inputs: Float[Tensor, "rows ..."]) -> list[Spectrum]:
    """The spectra of a layer's inputs: `rows`, and `tokens` where there are tokens.

    Args:
        inputs: [rows, dim], or [rows, tokens, dim] (further axes in between are tokens too).

    Raises:
        ValueError: no rows, or a value is not finite.
    """
    found = [spectrum(inputs.flatten(1), "rows")]
    if inputs.ndim > 2:
        found.append(spectrum(inputs.flatten(0, -2), "tokens"))
    return found


def spectrum(vectors: Float[Tensor, "vectors width"], view: View) -> Spectrum:
    """The spectrum of some vectors, in float64.

    Singular values come from the Gram matrix of the shorter side, which loses those below 1e-8 of
    the largest; float32 inputs carry less than that.

    Raises:
        ValueError: no vectors, or a value is not finite.
    """
    if not vectors.numel():
        raise ValueError(f"a spectrum needs vectors; got shape {tuple(vectors.shape)}")
    x = vectors.double()
    if not x.isfinite().all():
        raise ValueError("a spectrum needs finite values; these inputs hold infinities or NaN")
    centred = x - x.mean(0)
    # What float32 cannot tell from a constant is one.
    if centred.norm() <= torch.finfo(torch.float32).eps * x.norm():
        centred = torch.zeros_like(centred)
    gram = centred @ centred.mT if len(x) < x.shape[1] else centred.mT @ centred
    variances = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    total = variances.sum()
    values = (variances / variances[0]).sqrt() if total > 0 else variances
    p = values / values.sum()  # NaN when all are zero, and so is what follows
    shares = variances / total
    running = shares.cumsum(0)
    count = len(values)
    return Spectrum(
        view=view,
        vectors=len(x),
        width=x.shape[1],
        singular_values=tuple(values.tolist()),
        effective_rank=float(torch.special.entr(p).sum().exp()),
        participation_ratio=float(1 / shares.square().sum()),
        variance_share={
            2**power: float(running[2**power - 1].clamp(max=1))
            for power in range(count.bit_length())
        },
    )


def layer_inputs(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    device: str | torch.device = "cpu",
) -> dict[str, Float[Tensor, "rows ..."]]:
    """What some modules of a model receive when it scores rows.

    The input of a module is the first tensor among its arguments, at its first call in a forward
    pass. The model runs in evaluation mode and float32.

    Args:
        model: a ranker, already on `device`.
        modules: modules of it by path.
        batches: the rows.
        device: where the batches are moved to.

    Returns:
        By path, [rows, ...] float32 on the CPU. Modules that are never called, or whose input is no
        float tensor with a row for every row of the batch, are left out.
    """
    place = torch.device(device)
    collected: dict[str, list[Tensor]] = {}
    current: dict[str, Tensor] = {}  # of one forward pass

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            found = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            if found and path not in current:
                current[path] = found[0].detach()

        return hook

    with ExitStack() as stack:
        for path, module in modules.items():
            handle = module.register_forward_pre_hook(keep(path), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(autocast(place, "float32"))
        for batch in batches:
            current.clear()
            model(batch.without_labels().to(place, non_blocking=True))
            for path, value in current.items():
                if value.is_floating_point() and value.ndim > 1 and len(value) == batch.size:
                    collected.setdefault(path, []).append(value.float().cpu())
    # In the order of the modules, not of their calls.
    return {path: torch.cat(collected[path]) for path in modules if path in collected}
