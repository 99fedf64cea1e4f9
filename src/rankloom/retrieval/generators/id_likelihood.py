"""The likelihood of whole ids."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.retrieval.semantic_ids import PADDING


def id_log_likelihood(
    logits: Float[Tensor, "*shape width vocabulary"], tokens: Int[Tensor, "*shape width"]
) -> Float[Tensor, "*shape"]:
    """Log-likelihood of whole ids of which every token is known to the next: a sum over tokens.

    Args:
        logits: at each token's place, given those before it.
        tokens: the ids, END included, padding after it.
    """
    each = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return torch.where(tokens == PADDING, 0.0, each).sum(-1)
