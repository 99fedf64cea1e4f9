import numpy as np

from rankloom.retrieval.pair_merging import PairTable, merge_adjacent


def slow(row: list[int], merges: list[tuple[int, int]], first: int, apart: list[bool]) -> list[int]:
    """One row, the earliest merge first, the leftmost place first; ends in the original places."""
    parts = [(token, barred) for token, barred in zip(row, apart, strict=True)]
    while True:
        found = [
            (merges.index(pair), at)
            for at in range(len(parts) - 1)
            if not parts[at + 1][1]
            for pair in [(parts[at][0], parts[at + 1][0])]
            for pair in (pair, pair[::-1])
            if pair in merges
        ]
        if not found:
            return [token for token, _ in parts]
        merge, at = min(found)
        parts[at : at + 2] = [(first + merge, parts[at][1])]


def random_merges(rng: np.random.Generator, tokens: int, count: int) -> list[tuple[int, int]]:
    """Pairs of tokens from 1, each in one order only."""
    merges: list[tuple[int, int]] = []
    while len(merges) < count:
        a, b = rng.integers(1, tokens + 1 + len(merges), 2).tolist()
        if (a, b) not in merges and (b, a) not in merges:
            merges.append((a, b))
    return merges


def test_rows_equal_the_slow_reference() -> None:
    rng = np.random.default_rng(3)
    merges = random_merges(rng, 6, 40)
    lengths = rng.integers(0, 13, 60)
    real = np.arange(12) < lengths[:, None]
    tokens = np.where(real, rng.integers(1, 7, (60, 12)), 0)
    pairs = PairTable(np.array(merges), 7)
    for apart in (np.zeros((60, 12), np.bool_), rng.random((60, 12)) < 0.3):
        merged, ends = merge_adjacent(tokens, pairs, apart)
        for row, length in enumerate(lengths):
            wanted = slow(tokens[row, :length].tolist(), merges, 7, apart[row, :length].tolist())
            assert [token for token in merged[row] if token] == wanted
            starts = np.flatnonzero(merged[row])
            # Each token reaches to the one after it.
            assert (ends[row][starts] + 1).tolist() == [*starts[1:].tolist(), length][: len(starts)]
        assert (merged != tokens).any()


def test_the_earliest_merge_wins_over_the_leftmost() -> None:
    pairs = PairTable(np.array([[2, 3], [2, 1]]), 4)
    merged, _ = merge_adjacent(np.array([[1, 2, 3], [3, 1, 2]]), pairs)
    assert merged.tolist() == [[1, 4, 0], [3, 5, 0]]


def test_a_token_merges_with_itself_from_the_left() -> None:
    pairs = PairTable(np.array([[1, 1], [2, 1]]), 2)
    merged, ends = merge_adjacent(np.array([[1, 1, 1, 1, 1]]), pairs)
    # 1 1 1 1 1 -> 2 2 1 -> 2 3
    assert merged.tolist() == [[2, 0, 3, 0, 0]]
    assert ends[0, [0, 2]].tolist() == [1, 4]


def test_no_merges_and_no_rows() -> None:
    pairs = PairTable(np.empty((0, 2), np.int32), 5)
    merged, ends = merge_adjacent(np.array([[3, 4, 0]]), pairs)
    assert merged.tolist() == [[3, 4, 0]]
    assert ends.tolist() == [[0, 1, 2]]
    assert merge_adjacent(np.zeros((0, 4), np.int64), pairs)[0].shape == (0, 4)
