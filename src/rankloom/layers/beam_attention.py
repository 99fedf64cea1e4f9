"""Attention of beams to a context they share and to the few steps each has taken itself."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def beam_attention(
    q: Float[Tensor, "batch heads beams dim"],
    context_keys: Float[Tensor, "batch heads seq dim"],
    context_values: Float[Tensor, "batch heads seq dim"],
    mask: Bool[Tensor, "batch seq"],
    own_keys: Float[Tensor, "batch beams heads steps dim"],
    own_values: Float[Tensor, "batch beams heads steps dim"],
) -> Float[Tensor, "batch heads beams dim"]:
    """One softmax over a row's context and a beam's own steps, for every beam of every row.

    The context has no axis of beams: the beams are queries to it, so that it is never repeated.

    Args:
        q: one query per head and beam.
        context_keys: keys of the context.
        context_values: values of the context.
        mask: True at the context's real positions, of which every row has one.
        own_keys: keys of each beam's own steps, the present one included.
        own_values: values of the same.

    Returns:
        The attended values; products are divided by the square root of a head's width.
    """
    q = q * q.shape[-1] ** -0.5
    hidden = ~mask[:, None, None, :]
    to_context = (q @ context_keys.mT).masked_fill(hidden, -torch.inf)  # [.., beams, seq]
    by_beam = q.transpose(1, 2).unsqueeze(3)  # [batch, beams, heads, 1, dim]
    # Products of single numbers: matrices of one query are too small for a batched product.
    to_own = (own_keys * by_beam).sum(-1).transpose(1, 2)  # [batch, heads, beams, steps]
    weights = torch.cat([to_context, to_own], dim=-1).softmax(-1).to(context_values.dtype)
    context_weights, own_weights = torch.split(weights, [mask.shape[1], to_own.shape[-1]], dim=-1)
    of_own = (own_weights.transpose(1, 2).unsqueeze(-1) * own_values).sum(3).transpose(1, 2)
    return context_weights @ context_values + of_own


def follow_parents(
    own: Float[Tensor, "batch beams *rest"], parents: Tensor
) -> Float[Tensor, "batch new_beams *rest"]:
    """What the beams of the step before hold, for the beams that continue them.

    Args:
        own: anything each beam holds.
        parents: int64 [batch, new_beams] beam of the step before that each new one continues.
    """
    rows = torch.arange(own.shape[0], device=own.device).unsqueeze(1) * own.shape[1]
    taken = own.flatten(0, 1).index_select(0, (parents + rows).flatten())
    return torch.unflatten(taken, 0, parents.shape)
