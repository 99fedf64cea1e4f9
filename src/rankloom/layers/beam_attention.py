"""Attention of beams to a context they share and to the few steps each has taken itself.

What beams keep of their own steps has the steps as its first axis. One gather then re-orders the
beams of all steps and layers, straight into memory that has room for the next step, which every
layer fills in; what the step before kept stays as it is.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def beam_attention(
    q: Float[Tensor, "batch heads beams dim"],
    context_keys: Float[Tensor, "batch heads seq dim"],
    context_values: Float[Tensor, "batch heads seq dim"],
    mask: Bool[Tensor, "batch seq"],
    own_keys: Float[Tensor, "steps batch beams heads dim"],
    own_values: Float[Tensor, "steps batch beams heads dim"],
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
    # Products of single numbers: matrices of one query are too small for a batched product.
    to_own = (own_keys * q.transpose(1, 2)).sum(-1)  # [steps, batch, beams, heads]
    to_own = to_own.permute(1, 3, 2, 0)
    weights = torch.cat([to_context, to_own], dim=-1).softmax(-1).to(context_values.dtype)
    context_weights, own_weights = torch.split(weights, [mask.shape[1], to_own.shape[-1]], dim=-1)
    of_own = (own_weights.permute(3, 0, 2, 1).unsqueeze(-1) * own_values).sum(0)
    return context_weights @ context_values + of_own.transpose(1, 2)


@torch.no_grad()
def follow_parents(
    own: Float[Tensor, "steps batch beams *rest"], parents: Int[Tensor, "batch new_beams"]
) -> Float[Tensor, "steps_plus_one batch new_beams *rest"]:
    """What the beams of the step before hold, for the beams that continue them, and one step more.

    Args:
        own: what each beam holds of each of its steps; it stays as it is.
        parents: int64 beam of the step before that each new one continues.

    Returns:
        New memory without gradients; its last step is to be filled in.
    """
    steps, batch, beams = own.shape[:3]
    rows = torch.arange(batch, device=own.device).unsqueeze(1) * beams
    held = own.new_empty(steps + 1, parents.numel(), *own.shape[3:])
    torch.index_select(own.flatten(1, 2), 1, (parents + rows).flatten(), out=held[:steps])
    return torch.unflatten(held, 1, parents.shape)
