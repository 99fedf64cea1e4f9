"""A made-up catalogue and sequences with a planted structure, for tests, examples and benchmarks.

Planted: items lie in a tree of clusters, their vectors and texts follow it, and users walk through
it as a Markov chain. From an item, a user goes

- with probability `follow` to the item's successor: every leaf cluster is one cycle of its items;
- with probability `stay` to an item of the same leaf cluster, drawn evenly;
- else to any item of the catalogue, drawn from a power law (some items are popular).

So the best ranking puts the successor first and the leaf cluster behind it, and a model of item
numbers alone can learn it as well as one of codes. Everything depends on the seed alone.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.data.planted import power_law
from rankloom.data.sequence_store import SequenceData, number_values
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

BLOCK_ITEMS = 2**14
"""Items drawn from one generator; a row depends on (seed, block) and its place in the block."""
_WORDS = 6
"""Words of each cluster that its items' texts draw from."""
_SHRINK = 0.6
"""Spread of the clusters of a level, relative to that of the level above."""


def synthetic_sequences(
    num_items: int = 300,
    num_users: int = 500,
    *,
    branching: Sequence[int] = (4, 5),
    mean_length: float = 9.0,
    max_length: int = 40,
    follow: float = 0.5,
    stay: float = 0.3,
    width: int = 32,
    noise: float = 0.2,
    seed: int = 0,
) -> SequenceData:
    """A catalogue with vectors, texts and cluster attributes, and users' walks through it.

    Args:
        num_items: items, spread evenly over the leaf clusters.
        num_users: users.
        branching: clusters of the first level, then clusters inside each cluster, level by level.
        mean_length: mean length of the sequences, about; none is shorter than 3.
        max_length: longest sequence.
        follow: probability that the next item is the successor.
        stay: probability that it is any item of the same leaf cluster.
        width: width of the items' vectors.
        noise: deviation of a vector around its leaf cluster; first-level centres have deviation 1.
        seed: of everything.

    Raises:
        ValueError: sizes are below 1, lengths do not fit, or probabilities add up to more than 1.
    """
    leaves = _num_leaves(branching)
    if min(num_items, num_users, width) < 1 or not 3 <= mean_length <= max_length:
        raise ValueError(
            "num_items, num_users and width must be at least 1 and 3 <= mean_length <= max_length; "
            f"got {num_items}, {num_users}, {width}, {mean_length}, {max_length}"
        )
    if min(follow, stay) < 0 or follow + stay > 1:
        raise ValueError(f"follow + stay must be at most 1; got {follow} + {stay}")
    generator = np.random.default_rng(seed)
    leaf = generator.permutation(np.arange(num_items) % leaves)
    vectors = _centres(branching, width, generator)[leaf]
    vectors += noise * generator.standard_normal((num_items, width), np.float32)
    lengths = 3 + generator.poisson(mean_length - 3, num_users)
    walks = _walks(leaf, lengths.clip(max=max_length), follow, stay, generator)
    paths = _paths(leaf, branching)
    texts = _texts(paths, generator)
    numbered = [number_values(pl.Series(names)) for names in paths]
    catalogue = Catalogue(
        ids=[f"i{number}" for number in range(1, num_items + 1)],
        titles=[text.partition(".")[0] for text in texts],
        texts=texts,
        attributes=torch.from_numpy(np.stack([numbers for _, numbers in numbered], 1)),
        attribute_names=tuple(f"level_{level + 1}" for level in range(len(branching))),
        attribute_labels=tuple(labels for labels, _ in numbered),
        vectors=torch.from_numpy(vectors),
    )
    users = [f"u{number}" for number in range(1, num_users + 1)]
    return SequenceData("synthetic-items", catalogue, walks, users, "title", ("title", "words"))


def synthetic_vectors(
    num_items: int,
    width: int,
    *,
    branching: Sequence[int] = (32, 32),
    noise: float = 0.2,
    block_items: int = BLOCK_ITEMS,
    seed: int = 0,
) -> Iterator[Float[Tensor, "items width"]]:
    """Clustered vectors block by block, for catalogues that are not held in memory.

    Args:
        num_items: items in all.
        width: width of the vectors.
        branching: clusters of the first level, then clusters inside each cluster, level by level.
        noise: deviation of a vector around its leaf cluster.
        block_items: items of a block; another number gives other vectors.
        seed: of everything.

    Yields:
        float32 blocks of at most `block_items` rows.

    Raises:
        ValueError: a size is below 1.
    """
    _num_leaves(branching)
    if min(num_items, width, block_items) < 1:
        raise ValueError(
            f"num_items, width and block_items must be at least 1; got {num_items}, {width}, "
            f"{block_items}"
        )
    centres = _centres(branching, width, np.random.default_rng(seed))
    for block, start in enumerate(range(0, num_items, block_items)):
        generator = np.random.default_rng((seed, block))
        size = min(block_items, num_items - start)
        vectors = noise * generator.standard_normal((block_items, width), np.float32)
        vectors += centres[generator.integers(len(centres), size=block_items)]
        yield torch.from_numpy(vectors[:size])


def _num_leaves(branching: Sequence[int]) -> int:
    if not branching or min(branching) < 1:
        raise ValueError(f"branching needs numbers from 1, one for each level; got {branching}")
    return int(np.prod(branching))


def _centres(branching: Sequence[int], width: int, generator: np.random.Generator) -> FloatArray:
    """[leaves, width] centres of the leaf clusters: a cluster's centre lies around its parent's."""
    centres = np.zeros((1, width), np.float32)
    for level, children in enumerate(branching):
        centres = np.repeat(centres, children, axis=0)
        around = generator.standard_normal(centres.shape, np.float32)
        centres += np.float32(_SHRINK**level) * around
    return centres


def _walks(
    leaf: IntArray,
    lengths: IntArray,
    follow: float,
    stay: float,
    generator: np.random.Generator,
) -> Histories:
    """Walks of all users at once, step by step."""
    num_items = len(leaf)
    members = np.argsort(leaf, kind="stable")  # items of one leaf after another
    sizes = np.bincount(leaf)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(num_items, np.int64)
    place[members] = np.arange(num_items)
    successor = members[starts[leaf] + (place - starts[leaf] + 1) % sizes[leaf]]
    popular = generator.permutation(num_items)
    walks = np.zeros((len(lengths), int(lengths.max())), np.int64)  # [users, steps]
    for step in range(walks.shape[1]):
        anywhere = popular[power_law(generator, len(lengths), num_items, 1.0)]
        if step == 0:
            walks[:, 0] = anywhere
            continue
        current = walks[:, step - 1]
        own = leaf[current]
        inside = members[starts[own] + (generator.random(len(own)) * sizes[own]).astype(np.int64)]
        choice = generator.random(len(own))
        walks[:, step] = np.select(
            [choice < follow, choice < follow + stay], [successor[current], inside], anywhere
        )
    taken = np.arange(walks.shape[1]) < lengths[:, None]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Histories(walks[taken] + 1, offsets, num_items)


def _paths(leaf: IntArray, branching: Sequence[int]) -> list[list[str]]:
    """Names of the items' clusters, such as `3` and `3.1`: one list for each level."""
    below = list(accumulate(reversed(branching), mul))  # leaves below a cluster, from the bottom
    names = [""] * len(leaf)
    levels = []
    for divisor, children in zip([*reversed(below[:-1]), 1], branching, strict=True):
        own = (leaf // divisor % children).tolist()
        names = [f"{name}.{child}".lstrip(".") for name, child in zip(names, own, strict=True)]
        levels.append(names)
    return levels


def _texts(paths: list[list[str]], generator: np.random.Generator) -> list[str]:
    """A title of the item's own and two words of each of its clusters, in sentences."""
    items = list(zip(*paths, strict=True))
    words = generator.integers(_WORDS, size=(len(items), len(paths), 2)).tolist()
    texts = []
    for number, (clusters, drawn) in enumerate(zip(items, words, strict=True), start=1):
        parts = [
            f"w{name.replace('.', 'x')}{'abcdef'[word]}"
            for name, pair in zip(clusters, drawn, strict=True)
            for word in pair
        ]
        texts.append(f"Item {number}. {' '.join(parts)}.")
    return texts
