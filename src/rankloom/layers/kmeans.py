"""k-means on tensors: k-means++ start, Lloyd in blocks, balanced clusters, mini-batches.

Sources: Arthur and Vassilvitskii, SODA 2007 (k-means++); Lloyd, IEEE Transactions on Information
Theory 28, 1982; Sculley, WWW 2010 (mini-batches).

No step holds a matrix of all items by all clusters, except the exact form of a balanced assignment,
which is for small inputs only. `rankloom.layers.nearest` assigns further vectors.

With fewer distinct vectors than clusters, fewer clusters are used: the number of centres stays as
asked, the centres left over repeat others, and as ties go to the lower number nothing is nearest to
them.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.layers.nearest import BLOCK_ROWS, assign_nearest, balanced_assignment


def kmeans(
    vectors: Float[Tensor, "items width"],
    num_clusters: int,
    generator: torch.Generator,
    *,
    num_iterations: int = 25,
    balanced: bool = False,
    batch_size: int | None = None,
    start: Float[Tensor, "codes width"] | None = None,
    sample_size: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> tuple[Float[Tensor, "codes width"], Int[Tensor, " items"]]:
    """Cluster vectors by squared Euclidean distance.

    A cluster that lost its last vector is started again at the vector that is farthest from its
    own centre. The iterations end early when no label changes.

    Args:
        vectors: what is clustered; at least one. Computed in their type, float32 as a rule.
        num_clusters: centres to find.
        generator: a CPU generator; decides the start and the mini-batches.
        num_iterations: most updates of the centres; with `batch_size`, updates by one mini-batch.
        balanced: whether no cluster holds more than ceil(items / num_clusters) vectors.
        batch_size: vectors of one update, drawn anew each time, where there are very many; None:
            all of them.
        start: centres to start from; None: k-means++.
        sample_size: vectors that k-means++ looks at; None: 64 per cluster, at least 4,096.
        block_rows: vectors whose distances are held at once.

    Returns:
        The centres and the cluster of each vector (int64). Plain: the nearest centre. Balanced: a
        cluster with room, and each used centre is the mean of its vectors.

    Raises:
        ValueError: no vectors, no clusters, centres of another shape, a vector that is not finite,
            or mini-batches with `balanced`.
    """
    _check(vectors, num_clusters, balanced=balanced, batch_size=batch_size, start=start)
    if start is None:
        if sample_size is None:
            sample_size = max(64 * num_clusters, 4096)
        centres = plus_plus_start(_sample(vectors, sample_size, generator), num_clusters, generator)
    else:
        centres = start
    if batch_size is not None and batch_size < len(vectors):
        centres = _mini_batches(vectors, centres, generator, num_iterations, batch_size)
        labels, _ = assign_nearest(vectors, centres, block_rows=block_rows)
    elif balanced:
        centres, labels = _balanced_iterations(vectors, centres, num_iterations, block_rows)
    else:
        centres, labels = _iterations(vectors, centres, num_iterations, block_rows)
    return centres, labels


def plus_plus_start(
    vectors: Float[Tensor, "items width"], num_clusters: int, generator: torch.Generator
) -> Float[Tensor, "codes width"]:
    """Centres by k-means++.

    Each is a vector, drawn in proportion to its squared distance to the nearest of those before.
    When every vector is among them the rest repeat them, in the order they were drawn.
    """
    first = int(torch.randint(len(vectors), (1,), generator=generator))
    chosen = [first]
    nearest = (vectors - vectors[first]).square().sum(1)  # [items]
    while len(chosen) < num_clusters:
        # In float64 the sum of many distances still counts the small ones.
        shares = nearest.double().cumsum(0)
        if shares[-1] <= 0:
            break
        draw = torch.rand(1, generator=generator, dtype=torch.float64).to(shares.device)
        pick = int(torch.searchsorted(shares, draw * shares[-1], right=True))
        pick = min(pick, int(nearest.nonzero()[-1]))  # a draw that rounding put past the last one
        chosen.append(pick)
        nearest = torch.minimum(nearest, (vectors - vectors[pick]).square().sum(1))
    repeats = math.ceil(num_clusters / len(chosen))
    return vectors[(chosen * repeats)[:num_clusters]].clone()


def _iterations(
    vectors: Tensor, centres: Tensor, num_iterations: int, block_rows: int
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations; the labels are those of the centres returned."""
    labels, distances = assign_nearest(vectors, centres, block_rows=block_rows)
    for _ in range(num_iterations):
        centres = _reseed(vectors, _means(vectors, labels, centres), labels, distances)
        before = labels
        labels, distances = assign_nearest(vectors, centres, block_rows=block_rows)
        if torch.equal(labels, before):
            break
    return centres, labels


def _balanced_iterations(
    vectors: Tensor, centres: Tensor, num_iterations: int, block_rows: int
) -> tuple[Tensor, Tensor]:
    """Iterations whose labels leave no cluster over-full; the centres are the labels' means."""
    labels = balanced_assignment(vectors, centres, block_rows=block_rows)
    centres = _means(vectors, labels, centres)
    for _ in range(num_iterations - 1):
        before = labels
        labels = balanced_assignment(vectors, centres, block_rows=block_rows)
        if torch.equal(labels, before):
            break
        centres = _means(vectors, labels, centres)
    return centres, labels


def _mini_batches(
    vectors: Tensor,
    centres: Tensor,
    generator: torch.Generator,
    num_iterations: int,
    batch_size: int,
) -> Tensor:
    """Sculley's updates: each centre is the mean of all vectors it was nearest to so far."""
    seen = vectors.new_zeros(len(centres))
    for _ in range(num_iterations):
        rows = torch.randint(len(vectors), (batch_size,), generator=generator)
        batch = vectors[rows.to(vectors.device)]
        labels, distances = assign_nearest(batch, centres)
        counts = torch.bincount(labels, minlength=len(centres)).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, labels, batch)
        seen += counts
        centres = centres + (sums - counts[:, None] * centres) / seen.clamp(min=1)[:, None]
        centres = _place_at_farthest(batch, centres, seen == 0, distances)
    return centres


def _means(vectors: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster's vectors; an empty one keeps its centre."""
    counts = torch.bincount(labels, minlength=len(centres))
    sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
    return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)


def _reseed(vectors: Tensor, centres: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
    """Centres where those of empty clusters have moved to the vectors farthest from their own."""
    empty = torch.bincount(labels, minlength=len(centres)) == 0
    return _place_at_farthest(vectors, centres, empty, distances)


def _place_at_farthest(
    vectors: Tensor, centres: Tensor, moved: Tensor, distances: Tensor
) -> Tensor:
    """Centres where the marked ones lie on the vectors of greatest distance, as far as any is."""
    numbers = moved.nonzero().squeeze(1)
    if len(numbers) == 0:
        return centres
    farthest = distances.topk(min(len(numbers), len(vectors)))
    # A distance that is but rounding says that the vector has a centre already.
    rows = farthest.indices[farthest.values > 1e-6 * vectors.var(0, correction=0).sum()]
    centres = centres.clone()
    centres[numbers[: len(rows)]] = vectors[rows]
    return centres


def _sample(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Some of the vectors, or all where there are no more than that."""
    if len(vectors) <= size:
        return vectors
    rows = torch.randperm(len(vectors), generator=generator)[:size]
    return vectors[rows.to(vectors.device)]


def _check(
    vectors: Tensor,
    num_clusters: int,
    *,
    balanced: bool,
    batch_size: int | None,
    start: Tensor | None,
) -> None:
    """Raise what `kmeans` says it raises."""
    if len(vectors) == 0:
        raise ValueError("kmeans needs at least one vector; got none")
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
    if start is not None and start.shape != (num_clusters, vectors.shape[1]):
        raise ValueError(
            f"start must be [num_clusters, width] = [{num_clusters}, {vectors.shape[1]}]; got "
            f"{list(start.shape)}"
        )
    if balanced and batch_size is not None:
        raise ValueError("balanced clusters need all vectors at once; leave batch_size at None")
    if not torch.isfinite(vectors).all():
        raise ValueError("kmeans needs finite vectors; some hold nan or infinity")
