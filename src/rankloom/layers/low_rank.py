"""Products with low-rank matrices of which every row has its own core."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.mlp import MLP


def low_rank_product(
    h: Float[Tensor, "batch in_features"],
    left: Float[Tensor, "in_features rank"],
    core: Float[Tensor, "batch rank rank"],
    right: Float[Tensor, "rank out_features"],
) -> Float[Tensor, "batch out_features"]:
    """The rows h (U S V), with the matrix U S V of no row ever built: ((h U) S) V.

    Args:
        h: the rows.
        left: U, common to all rows.
        core: S of every row.
        right: V, common to all rows.
    """
    # Not `bmm`: its backward has an outer product for every row, which is slow on a processor.
    mixed = ((h @ left).unsqueeze(2) * core).sum(1)  # [batch, rank]
    return mixed @ right


def core_generator(
    in_features: int, hidden: Sequence[int], rank: int, *, num_others: int = 0
) -> MLP:
    """A network that gives a core, row after row of it, and other numbers behind it.

    Its last bias starts the core at the identity, so that new layers are ordinary low-rank ones,
    and the others at zero: what it reads is mostly small at the start, and through several layers
    with a core near zero no signal would come.

    Args:
        in_features: width of what it reads.
        hidden: widths of its hidden layers.
        rank: rows and columns of the core.
        num_others: other numbers.
    """
    generator = MLP(in_features, hidden, out_features=rank * rank + num_others)
    last = cast(nn.Linear, generator.layers[-1])
    with torch.no_grad():
        last.bias[: rank * rank].copy_(torch.eye(rank).flatten())
    return generator
