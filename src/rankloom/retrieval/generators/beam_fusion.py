"""BeamFusion: items of decoded ids, ranked by the id and by a dense query that the id gave.

Source: COBRA (Yang et al., NeurIPS 2025, arXiv:2503.02453), section on inference.
Equation: score(item) = softmax over beams(tau * beam score) *
    softmax over the items of the beam's id(psi * cos(query of the beam, item vector)).
The paper does not say over which items the second softmax runs; here over those that share the id,
    so that the score is p(id) p(item | id).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rankloom.retrieval.decoding import Decoded
from rankloom.retrieval.trie import Trie


def fuse_beams(
    decoded: Decoded,
    queries: Float[Tensor, "batch beams dim"],
    item_vectors: Float[Tensor, "items_plus_one dim"],
    trie: Trie,
    *,
    count: int,
    tau: float,
    psi: float,
    blocked: Int[Tensor, "batch blocked"] | None = None,
) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
    """The best items of all beams.

    Args:
        decoded: the ids.
        queries: dense query of each.
        item_vectors: unit vectors by item number; row 0 is padding.
        trie: which items share an id.
        count: items wanted.
        tau: weight of beam scores.
        psi: weight of cosines.
        blocked: numbers of items that a request may not get; 0: none.

    Returns:
        int64 item numbers, best first, 0 where there are fewer, and the logarithms of their scores,
        -inf there.
    """
    batch, beams = decoded.leaves.shape
    leaves = decoded.leaves.clamp(min=0).flatten()
    begin = trie.leaf_offsets[leaves].long()
    sizes = trie.leaf_offsets[leaves + 1].long() - begin
    sizes = sizes.masked_fill(decoded.leaves.flatten() < 0, 0)  # [batch * beams]
    # Pairs of a beam and an item of its id, one beam after another.
    beam = torch.repeat_interleave(torch.arange(batch * beams, device=sizes.device), sizes)
    ends = sizes.cumsum(0)
    inside = torch.arange(len(beam), device=sizes.device) - (ends - sizes)[beam]
    items = trie.leaf_items[begin[beam] + inside].long()  # [pairs]
    row = beam // beams
    unit = functional.normalize(queries.float(), dim=-1).flatten(0, 1)
    cosines = (unit[beam] * item_vectors[items]).sum(1)
    weight = psi * (cosines - 1)  # at most 0, so that its exponential is safe
    if blocked is not None:
        weight = weight.masked_fill((blocked[row] == items[:, None]).any(1), -torch.inf)
    total = weight.new_zeros(batch * beams).index_add(0, beam, weight.exp())
    of_beam = (tau * decoded.scores).log_softmax(1).flatten()
    fused = of_beam[beam] + torch.where(weight > -torch.inf, weight - total[beam].log(), weight)
    # [batch, most pairs of a row], so that rows are sorted side by side.
    pairs = sizes.view(batch, beams).sum(1)
    width = max(count, int(pairs.max())) if batch else count
    column = torch.arange(len(beam), device=sizes.device) - (pairs.cumsum(0) - pairs)[row]
    scores = fused.new_full((batch, width), -torch.inf).index_put((row, column), fused)
    numbers = items.new_zeros(batch, width).index_put((row, column), items)
    scores, order = scores.topk(count, dim=1)
    return numbers.gather(1, order).masked_fill(scores == -torch.inf, 0), scores
