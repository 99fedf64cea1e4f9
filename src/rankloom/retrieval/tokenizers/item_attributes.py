"""Side fields of items, by name."""

from jaxtyping import Int
from torch import Tensor

from rankloom.retrieval.protocols import TokenizerItems


def named_attributes(
    items: TokenizerItems, names: tuple[str, ...], tokenizer: str
) -> Int[Tensor, "items attributes"]:
    """Some side fields of items, in the order of the names.

    Raises:
        ValueError: the items lack one.
    """
    known = items.attribute_names
    if items.attributes is None or not set(names) <= set(known):
        raise ValueError(
            f"{tokenizer} needs items with the side fields {', '.join(names)}; got "
            f"{', '.join(known) or 'none'}"
        )
    return items.attributes[:, [known.index(name) for name in names]]
