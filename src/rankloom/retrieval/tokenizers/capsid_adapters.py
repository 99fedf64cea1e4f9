"""CapsID's second stage: small adapters of the routing, learned with a generator.

Source: CapsID, arXiv:2605.05096, as far as public accounts of it go: centres are frozen, and
    adapters of rank 8 are learned with the generator.
The paper does not say: where an adapter stands (here it adds a low-rank map of each level's scaled
    input to that input, before the votes), nor how ids that change under training are handled
    (here: make them anew, after an epoch say, and rebuild what was built for the old ones).
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.capsid import CapsID


def add_adapters(tokenizer: CapsID, rank: int) -> list[nn.Parameter]:
    """Freeze everything and give each level a fresh low-rank adapter of its input.

    For the second stage, in which a generator's loss reaches the adapters through `CapsID.route`:
    the weights of a level are differentiable, their winners are the codes. Adapters start at
    zero, so that the codes are the same at first; after they have moved, `assign` gives the
    new ids, and generator and trie are to be built for those.

    Args:
        tokenizer: a trained tokenizer; changed in place.
        rank: rank of each adapter, the paper's 8.

    Returns:
        The adapters' parameters, which alone are to be learned.
    """
    tokenizer.config = tokenizer.config.model_copy(update={"adapter_rank": rank})
    tokenizer.requires_grad_(False)
    parameters = list[nn.Parameter]()
    for level in tokenizer.levels:
        parameters += level.add_adapter(rank)
    return parameters


def new_ids(
    tokenizer: CapsID, vectors: Float[Tensor, "items width"], ids: SemanticIds
) -> SemanticIds:
    """Ids of the catalogue after the adapters have moved; merges are kept.

    Raises:
        ValueError: the ids have other levels (a digit against collisions, say).
    """
    if ids.level_sizes != tokenizer.level_sizes:
        raise ValueError(
            f"ids must have the tokenizer's levels {tokenizer.level_sizes}; got {ids.level_sizes}: "
            "resolve collisions anew"
        )
    return replace(ids, codes=tokenizer.assign(vectors).codes)
