"""One step of decoding on a trie: the children of every beam, and the best of them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rankloom.retrieval.protocols import Generator
from rankloom.retrieval.trie import Trie

FEW_CHILDREN = 8
"""Logits of the children alone are asked for where the vocabulary has this many times as many
tokens: below it one matrix product with all of them is faster than gathering their rows."""


@dataclass(frozen=True)
class Children:
    """What may follow each node, as many places as the widest node of the depth has."""

    nodes: Int[Tensor, "batch beams branch"]
    """int32 children."""
    tokens: Int[Tensor, "batch beams branch"]
    """int64 tokens that lead to them."""
    legal: Bool[Tensor, "batch beams branch"]
    """False where there is no child, or none that a request may get."""
    stays: Bool[Tensor, "batch beams branch"]
    """True at the child of a leaf, which is the leaf itself."""


def children_of(
    trie: Trie,
    nodes: Int[Tensor, "batch beams"],
    depth: int,
    blocked: Int[Tensor, "batch blocked"] | None = None,
) -> Children:
    """The children of nodes.

    Args:
        trie: the catalogue.
        nodes: int32, all of this depth, or leaves of an earlier one.
        depth: tokens written so far.
        blocked: `Trie.blocked_leaves` of each request.
    """
    branch = torch.arange(trie.max_branch[depth], dtype=torch.int32, device=nodes.device)
    legal = branch < trie.num_children[nodes][:, :, None]  # [batch, beams, branch]
    first = trie.first_child[nodes]
    children = torch.where(legal, first[:, :, None] + branch, 0)
    if blocked is not None:
        legal = legal & trie.is_legal(children, blocked)
    stays = (first == nodes)[:, :, None] & (branch == 0)
    return Children(children, trie.token[children].long(), legal, stays)


def log_probabilities(
    generator: Generator,
    trie: Trie,
    hidden: Float[Tensor, "batch beams dim"],
    children: Children,
    *,
    renormalise: bool,
) -> Float[Tensor, "batch beams branch"]:
    """float32 log-probability of each child: 0 of a leaf's own, -inf where it is not legal.

    Args:
        generator: gives the logits.
        trie: the catalogue.
        hidden: what predicts the token after each node.
        children: of these nodes.
        renormalise: spread the probability over the legal children alone.
    """
    if renormalise and FEW_CHILDREN * children.tokens.shape[2] <= trie.vocabulary_size:
        chosen = generator.logits_of(hidden, children.tokens).float()
    else:
        every = generator.logits(hidden).float()  # [batch, beams, vocabulary]
        chosen = every.gather(2, children.tokens)
    if not renormalise:
        total = every.logsumexp(2, keepdim=True)
    else:
        total = chosen.masked_fill(~children.legal, -math.inf).logsumexp(2, keepdim=True)
    gains = (chosen - total).masked_fill(children.stays, 0.0)
    return gains.masked_fill(~children.legal, -math.inf)


def best(
    scores: Float[Tensor, "batch choices"],
    nodes: Int[Tensor, "batch choices"],
    first_leaf: Int[Tensor, " nodes"],
    count: int,
) -> Int[Tensor, "batch count"]:
    """Places of the highest scores, best first, at most all of them; equal ones by their tokens.

    Args:
        scores: float32; -inf for what is no choice, in no particular order.
        nodes: node of each choice, none above another one.
        first_leaf: first leaf below each node: what orders nodes of any depths by their tokens.
        count: choices wanted.
    """
    count = min(count, scores.shape[1])
    values, places = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    cut = values[:, count - 1 : count] == values[:, count:]  # [batch, 0 or 1]
    if (cut & (values[:, count:] > -math.inf)).any():
        # topk does not say which of equal scores it takes. Asking here waits for the device once a
        # step; ordering every choice for the sake of rare ties would cost far more.
        return _ordering(scores, first_leaf[nodes]).topk(count, dim=1).indices
    places = places[:, :count]
    leaves = first_leaf[nodes.gather(1, places)]
    order = _ordering(values[:, :count], leaves).argsort(dim=1, descending=True)
    return places.gather(1, order)


def _ordering(
    scores: Float[Tensor, "batch choices"], leaves: Int[Tensor, "batch choices"]
) -> Int[Tensor, "batch choices"]:
    """int64 that order as the scores do and, where these are equal, against the leaf's number."""
    bits = (scores + 0.0).view(torch.int32)  # adding 0 makes -0.0 the 0.0 that it is equal to
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the bits of negative floats run the other way
    return (rising.long() << 32) - leaves


def beam_bytes(trie: Trie) -> int:
    """Bytes that a step is counted for, for each beam.

    Logits of the vocabulary and the exponentials of their sum, as much again for what the generator
    keeps, and the children with their tokens and scores.
    """
    return 16 * trie.vocabulary_size + 24 * max(trie.max_branch)
