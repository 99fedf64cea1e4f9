"""The token sequences of a catalogue as a flat trie, for decoding that only writes its items.

Source: STATIC (arXiv 2602.22647) flattens the trie into arrays, so that a step of all beams is a
gather of at most as many children as the widest node of that depth has. Nothing is copied from it:
here nodes are numbered depth by depth and, inside a depth, in the order of their tokens. The
children of a node then have consecutive numbers, and the leaves below it too, which leaves five
int32 numbers to a node and no list of edges.

The sequences end with END, so that each ends in a leaf of its own. A leaf has itself as its only
child: a beam that has arrived stays there at no cost (decoding gives that step padding as its
token and log-probability 0) and keeps competing while others still write.

STATIC's dense tables of the first levels are left out: children with consecutive numbers are read
by a gather as narrow as the node is wide, which a mask over the vocabulary cannot beat.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rankloom.retrieval.semantic_ids import PADDING, SemanticIds

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trie:
    """A catalogue's token sequences. Node 0 is the root; leaf l is the l-th sequence in order."""

    token: Int[Tensor, " nodes"]
    """int32 token that leads to each node; that of the root is padding."""
    first_child: Int[Tensor, " nodes"]
    """int32 first child of each node; a leaf is its own child."""
    num_children: Int[Tensor, " nodes"]
    """int32: node n has the children first_child[n] ... first_child[n] + num_children[n] - 1."""
    first_leaf: Int[Tensor, " nodes"]
    """int32 first leaf below each node."""
    num_leaves: Int[Tensor, " nodes"]
    """int32: the leaves first_leaf[n] ... first_leaf[n] + num_leaves[n] - 1 are below node n."""
    leaf_offsets: Int[Tensor, " leaves_plus_one"]
    """int32: the items of leaf l are leaf_items[leaf_offsets[l] : leaf_offsets[l + 1]]."""
    leaf_items: Int[Tensor, " kept"]
    """int32 item numbers, leaf after leaf; several in one leaf are items that collide."""
    item_leaf: Int[Tensor, " items_plus_one"]
    """int32 leaf of each item number; -1 for padding and removed items."""
    max_branch: tuple[int, ...]
    """Most children that a node has, at each depth from the root on."""
    vocabulary_size: int
    """Tokens of the ids."""
    content_hash: str
    """Of the ids that the trie was built from."""

    @classmethod
    def build(
        cls,
        ids: SemanticIds,
        *,
        priority: npt.ArrayLike | None = None,
        removed: npt.ArrayLike | None = None,
    ) -> "Trie":
        """The trie of a catalogue, on the CPU.

        Args:
            ids: the items' ids.
            priority: [items] what orders items of equal ids, largest first (how often an item was
                bought, say); items of equal priority, and all without it, go by their number.
            removed: [removed] numbers of items that no request may get. They take no part, and an
                id that has none but removed items is not in the trie.

        Raises:
            ValueError: a wrong shape, an unknown item number, or no item is left.
        """
        kept = _kept_rows(ids.num_items, removed)
        rank = np.zeros(ids.num_items) if priority is None else np.asarray(priority)
        if rank.shape != (ids.num_items,):
            raise ValueError(
                f"priority needs a value for each of {ids.num_items} items; got shape {rank.shape}"
            )
        tokens = ids.tokens[kept]  # [kept, width]
        tokens = tokens[:, : int((tokens != PADDING).sum(1).max())]  # longer ones may be removed
        order = np.lexsort((-rank[kept], *tokens.T[::-1]))  # stable: then by item number
        tokens = tokens[order]
        # new[r, d]: the first d + 1 tokens of row r differ from those of the row before it.
        new = np.ones(tokens.shape, np.bool_)
        new[1:] = np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)
        leaf_of_row = np.cumsum(new[:, -1]) - 1
        item_leaf = np.full(ids.num_items + 1, -1)
        item_leaf[kept[order] + 1] = leaf_of_row
        offsets = np.append(np.flatnonzero(new[:, -1]), len(kept))
        return cls(
            **_nodes(tokens, new, leaf_of_row),
            leaf_offsets=_int32(offsets),
            leaf_items=_int32(kept[order] + 1),
            item_leaf=_int32(item_leaf),
            vocabulary_size=ids.vocabulary_size,
            content_hash=ids.content_hash,
        )

    @property
    def depth(self) -> int:
        """Tokens of the longest sequence, END included: the steps of decoding."""
        return len(self.max_branch)

    @property
    def num_nodes(self) -> int:
        """Nodes, the root and the leaves included."""
        return self.token.shape[0]

    @property
    def leaves(self) -> int:
        """Distinct ids."""
        return self.leaf_offsets.shape[0] - 1

    @property
    def group_sizes(self) -> Int[Tensor, " leaves"]:
        """int32 items of each leaf."""
        return self.leaf_offsets.diff()

    def check(self, ids: SemanticIds) -> None:
        """Make sure that the trie was built from these ids.

        Raises:
            ValueError: the catalogue has changed since.
        """
        if ids.content_hash != self.content_hash:
            raise ValueError(
                f"the trie was built from other semantic ids ({self.content_hash}, these are "
                f"{ids.content_hash}): the catalogue changed; build the trie again"
            )

    def to(self, device: torch.device | str) -> "Trie":
        """The trie on another device."""
        moved: dict[str, Any] = {
            part.name: value.to(device)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor)
        }
        return replace(self, **moved)

    def is_leaf(self, nodes: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether nodes are leaves."""
        return self.first_child[nodes] == nodes

    def blocked_leaves(self, items: Int[Tensor, "batch blocked"]) -> Int[Tensor, "batch blocked"]:
        """Leaves that a request may not get, of the items that it may not get.

        A leaf is blocked once all of its items are.

        Args:
            items: item numbers, in any order and any number of times; 0: none.

        Returns:
            int32, ascending in each row, each leaf once, then `leaves`, which is no leaf.

        Raises:
            ValueError: a number is not of the catalogue.
        """
        if items.numel() and (items.amin() < 0 or items.amax() >= self.item_leaf.shape[0]):
            raise ValueError(
                f"blocked items must be item numbers from 1 to {self.item_leaf.shape[0] - 1} or 0; "
                f"got {int(items.amin())} to {int(items.amax())}"
            )
        ordered = items.sort(1).values  # [batch, blocked]
        again = torch.zeros_like(ordered, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        leaves = self.item_leaf[ordered]
        none = leaves.new_tensor(self.leaves)
        leaves = torch.where(again | (leaves < 0), none, leaves).sort(1).values
        start = torch.searchsorted(leaves, leaves)
        count = torch.searchsorted(leaves, leaves, right=True) - start
        size = self.group_sizes[leaves.clamp(max=self.leaves - 1)]
        first = start == torch.arange(leaves.shape[1], device=leaves.device)
        return torch.where(first & (count == size), leaves, none).sort(1).values

    def is_legal(
        self, nodes: Int[Tensor, "batch ..."], blocked_leaves: Int[Tensor, "batch blocked"]
    ) -> Bool[Tensor, "batch ..."]:
        """Whether a leaf that is not blocked lies below each node.

        It counts the blocked leaves between a node's first and last one, for the given nodes alone:
        memory does not grow with the catalogue.

        Args:
            nodes: nodes of each request.
            blocked_leaves: what `blocked_leaves` made.
        """
        first = self.first_leaf[nodes].flatten(1)  # [batch, shape]
        total = self.num_leaves[nodes].flatten(1)
        below = torch.searchsorted(blocked_leaves, first + total)
        below = below - torch.searchsorted(blocked_leaves, first)
        return (below < total).view(nodes.shape)


def _kept_rows(num_items: int, removed: npt.ArrayLike | None) -> IntArray:
    """[kept] rows of the items that stay, ascending."""
    gone = np.empty(0, np.int64) if removed is None else np.asarray(removed, np.int64).reshape(-1)
    if gone.size and not (gone.min() >= 1 and gone.max() <= num_items):
        raise ValueError(
            f"removed items must be item numbers from 1 to {num_items}; got {gone.min()} to "
            f"{gone.max()}"
        )
    keep = np.ones(num_items, np.bool_)
    keep[gone - 1] = False
    if not keep.any():
        raise ValueError(f"a trie needs an item; {num_items} items, {gone.size} of them removed")
    return np.flatnonzero(keep)


def _nodes(
    tokens: npt.NDArray[np.int32], new: npt.NDArray[np.bool_], leaf_of_row: IntArray
) -> dict[str, Any]:
    """The five arrays of nodes, and the most children of a node at each depth, by name.

    Args:
        tokens: [rows, width] sequences in lexicographic order.
        new: [rows, width] whether a prefix, of so many tokens and one, starts at this row.
        leaf_of_row: [rows] number of each row's sequence.
    """
    leaves = int(leaf_of_row[-1]) + 1
    # One depth after another, the root first.
    token, first_child, num_children = [np.array([PADDING])], [], []
    first_leaf, num_leaves, max_branch = [np.array([0])], [np.array([leaves])], []
    parents = 1  # nodes of the depth before
    first = 0  # number of the first of them
    node_of_row = np.zeros(len(tokens), np.int64)  # place among the nodes of the depth before
    for depth in range(tokens.shape[1]):
        ended = tokens[:, depth] == PADDING
        starts = np.flatnonzero(new[:, depth])
        begin = leaf_of_row[starts]
        count = np.diff(np.append(begin, leaves))
        real = ~ended[starts]  # others ended at an earlier depth
        starts = starts[real]
        children = np.bincount(node_of_row[starts], minlength=parents)
        after = first + parents
        is_leaf = children == 0
        first_child.append(
            np.where(is_leaf, first + np.arange(parents), after + np.cumsum(children) - children)
        )
        num_children.append(np.where(is_leaf, 1, children))
        max_branch.append(int(num_children[-1].max()))
        token.append(tokens[starts, depth].astype(np.int64))
        first_leaf.append(begin[real])
        num_leaves.append(count[real])
        node_of_row = np.cumsum(new[:, depth] & ~ended) - 1
        parents, first = len(starts), after
    first_child.append(first + np.arange(parents))  # the last depth holds leaves alone
    num_children.append(np.ones(parents, np.int64))
    return {
        "token": _int32(np.concatenate(token)),
        "first_child": _int32(np.concatenate(first_child)),
        "num_children": _int32(np.concatenate(num_children)),
        "first_leaf": _int32(np.concatenate(first_leaf)),
        "num_leaves": _int32(np.concatenate(num_leaves)),
        "max_branch": tuple(max_branch),
    }


def _int32(values: npt.NDArray[np.int64]) -> Int[Tensor, " values"]:
    return torch.from_numpy(values.astype(np.int32))
