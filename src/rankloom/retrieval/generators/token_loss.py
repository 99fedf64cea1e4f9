"""Cross-entropy of tokens, and the likelihood of whole ids."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rankloom.retrieval.semantic_ids import PADDING


def token_cross_entropy(
    logits: Float[Tensor, "tokens vocabulary"],
    labels: Int[Tensor, " tokens"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over tokens, in float32; 0 of none."""
    total = functional.cross_entropy(
        logits.float(), labels, reduction="sum", label_smoothing=label_smoothing
    )
    return total / max(labels.shape[0], 1)


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
