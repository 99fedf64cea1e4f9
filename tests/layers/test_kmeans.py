import pytest
import torch

from rankloom.layers.kmeans import kmeans, plus_plus_start


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(num_blobs: int, per_blob: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    centres = 20 * torch.randn(num_blobs, width, generator=seeded(1))
    members = torch.arange(num_blobs).repeat_interleave(per_blob)
    noise = torch.randn(len(members), width, generator=seeded(2))
    return centres[members] + noise, members


def slow_lloyd(vectors: torch.Tensor, centres: torch.Tensor, iterations: int) -> torch.Tensor:
    for _ in range(iterations):
        groups: list[list[torch.Tensor]] = [[] for _ in centres]
        for x in vectors:
            groups[int(torch.stack([(x - c).square().sum() for c in centres]).argmin())].append(x)
        centres = torch.stack([torch.stack(group).mean(0) for group in groups])
    return centres


@pytest.mark.parametrize("iterations", [1, 3])
def test_lloyd_agrees_with_loops(iterations: int) -> None:
    vectors = torch.randn(60, 3, generator=seeded())
    start = vectors[:4].clone()
    centres, labels = kmeans(vectors, 4, seeded(), num_iterations=iterations, start=start)
    expected = slow_lloyd(vectors, start, iterations)
    torch.testing.assert_close(centres, expected)
    distances = (vectors[:, None] - centres).square().sum(2)
    assert labels.tolist() == distances.argmin(1).tolist()
    torch.testing.assert_close(start, vectors[:4])  # the caller's start is left as it was


@pytest.mark.parametrize("settings", [{}, {"balanced": True}, {"batch_size": 60}])
def test_separate_clusters_are_found(settings: dict[str, int]) -> None:
    vectors, members = blobs(6, 30)
    centres, labels = kmeans(vectors, 6, seeded(), **settings)
    for blob in range(6):
        codes = labels[members == blob].unique()
        assert len(codes) == 1
        expected = vectors[members == blob].mean(0)
        tolerance = 0.5 if "batch_size" in settings else 1e-4
        torch.testing.assert_close(centres[codes[0]], expected, rtol=0, atol=tolerance)


def test_blocks_change_nothing() -> None:
    vectors = torch.randn(300, 4, generator=seeded())
    whole, _ = kmeans(vectors, 10, seeded())
    blocks, _ = kmeans(vectors, 10, seeded(), block_rows=17)
    torch.testing.assert_close(whole, blocks)


def test_the_same_seed_gives_the_same_clusters() -> None:
    vectors = torch.randn(100, 4, generator=seeded())
    first, again, other = (kmeans(vectors, 8, seeded(seed))[0] for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_an_empty_cluster_starts_again_at_the_farthest_vector() -> None:
    vectors = torch.tensor([[0.0], [1.0], [10.0], [30.0]])
    start = torch.tensor([[0.0], [1000.0]])
    centres, labels = kmeans(vectors, 2, seeded(), start=start, num_iterations=1)
    assert centres.tolist() == [[10.25], [30.0]]
    assert labels.tolist() == [0, 0, 0, 1]


def test_balanced_clusters_hold_equally_many_and_centres_are_their_means() -> None:
    vectors = torch.cat([torch.randn(90, 3, generator=seeded()), 9 + torch.zeros(10, 3)])
    centres, labels = kmeans(vectors, 7, seeded(), balanced=True)
    assert int(torch.bincount(labels).max()) <= 15
    for code in range(7):
        torch.testing.assert_close(centres[code], vectors[labels == code].mean(0))


@pytest.mark.parametrize("balanced", [False, True])
def test_fewer_vectors_than_clusters(balanced: bool) -> None:
    vectors = torch.randn(3, 4, generator=seeded())
    centres, labels = kmeans(vectors, 8, seeded(), balanced=balanced)
    assert centres.shape == (8, 4)
    assert len(labels.unique()) == 3
    torch.testing.assert_close(centres[labels], vectors)


def test_equal_vectors_share_a_cluster() -> None:
    points = torch.randn(4, 7, generator=seeded()) + 50
    centres, labels = kmeans(points.repeat(25, 1), 16, seeded())
    assert len(labels.unique()) == 4
    assert labels.tolist() == labels[:4].tolist() * 25
    torch.testing.assert_close(centres[labels[:4]], points)


def test_all_vectors_equal() -> None:
    centres, labels = kmeans(torch.full((10, 2), 0.1), 3, seeded())
    torch.testing.assert_close(centres, torch.full((3, 2), 0.1))
    assert len(labels.unique()) == 1


def test_plus_plus_takes_every_distinct_vector_before_it_repeats_one() -> None:
    vectors = torch.tensor([[0.0], [0.0], [0.0], [5.0], [9.0]])
    for seed in range(20):
        start = plus_plus_start(vectors, 4, seeded(seed)).squeeze(1).tolist()
        assert set(start[:3]) == {0, 5, 9}
        assert start[3] == start[0]


def test_plus_plus_draws_in_proportion_to_squared_distances() -> None:
    # From 0: 1 has a share of 1 / 5, 2 one of 4 / 5; starts elsewhere are left out.
    vectors = torch.tensor([[0.0], [1.0], [2.0]])
    starts = [plus_plus_start(vectors, 2, seeded(seed)).squeeze(1) for seed in range(1500)]
    seconds = torch.tensor([float(start[1]) for start in starts if start[0] == 0])
    assert abs(float((seconds == 2).float().mean()) - 0.8) < 0.06


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vectors": torch.ones(0, 2)}, "needs at least one vector"),
        ({"num_clusters": 0}, "num_clusters must be at least 1; got 0"),
        ({"start": torch.ones(3, 2)}, r"\[2, 2\]; got \[3, 2\]"),
        ({"balanced": True, "batch_size": 4}, "leave batch_size at None"),
        ({"vectors": torch.tensor([[1.0, torch.nan]])}, "finite"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    arguments = {"vectors": torch.ones(5, 2), "num_clusters": 2, "generator": seeded(), **settings}
    with pytest.raises(ValueError, match=message):
        kmeans(**arguments)  # type: ignore[arg-type]
