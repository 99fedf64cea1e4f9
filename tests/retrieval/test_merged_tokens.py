import numpy as np
import pytest

from rankloom.retrieval.merged_tokens import MergedRows, apply_merges, expand_merges


def array(rows: list[list[int]]) -> np.ndarray:
    width = max(len(row) for row in rows)
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


def merge_one_by_one(
    tokens: np.ndarray, merges: list[tuple[int, int]], first_merge: int
) -> list[list[int]]:
    results = []
    for row in tokens.tolist():
        ids = [token for token in row if token]
        for number, pair in enumerate(merges):
            merged, place = [], 0
            while place < len(ids):
                if tuple(ids[place : place + 2]) == pair:
                    merged.append(first_merge + number)
                    place += 2
                else:
                    merged.append(ids[place])
                    place += 1
            ids = merged
        results.append(ids)
    return results


def test_by_hand() -> None:
    tokens = array([[3, 5, 7], [3, 5], [4, 5, 7], [3]])
    merges = np.array([[3, 5], [9, 7]], np.int32)
    expected = array([[10], [9], [4, 5, 7], [3]])
    np.testing.assert_array_equal(apply_merges(tokens, merges, 9), expected)
    np.testing.assert_array_equal(expand_merges(expected, merges, 9), tokens)


def test_equal_tokens_are_paired_from_the_left_without_overlap() -> None:
    tokens = array([[3, 3, 3], [3, 3, 3, 3], [4, 3, 3, 3]])
    merged = apply_merges(tokens, np.array([[3, 3]], np.int32), 5)
    np.testing.assert_array_equal(merged, array([[5, 3, 0, 0], [5, 5], [4, 5, 3]]))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop_and_expands_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, 60)
    tokens = rng.integers(3, 7, (60, 6)).astype(np.int32)
    tokens[np.arange(6) >= lengths[:, None]] = 0
    merges = [(int(rng.integers(3, 7 + n)), int(rng.integers(3, 7 + n))) for n in range(12)]
    merged = apply_merges(tokens, np.array(merges, np.int32), 7)
    assert [[t for t in row if t] for row in merged.tolist()] == merge_one_by_one(tokens, merges, 7)
    assert (merged >= 7).any()
    expanded = expand_merges(merged, np.array(merges, np.int32), 7)
    np.testing.assert_array_equal(expanded, tokens[:, : expanded.shape[1]])
    assert not tokens[:, expanded.shape[1] :].any()


def test_what_is_given_is_not_changed() -> None:
    tokens = array([[3, 4]])
    apply_merges(tokens, np.array([[3, 4]], np.int32), 5)
    np.testing.assert_array_equal(tokens, [[3, 4]])


def test_no_merges_no_items() -> None:
    none = np.empty((0, 2), np.int32)
    tokens = array([[3, 4]])
    np.testing.assert_array_equal(apply_merges(tokens, none, 5), tokens)
    empty = np.empty((0, 3), np.int32)
    assert apply_merges(empty, np.array([[3, 4]], np.int32), 5).shape == (0, 3)
    assert expand_merges(empty, none, 5).shape == (0, 0)


def test_special_tokens_stay() -> None:
    tokens = array([[5, 1], [3, 1]])
    expanded = expand_merges(tokens, np.array([[3, 4]], np.int32), 5)
    np.testing.assert_array_equal(expanded, array([[3, 4, 1], [3, 1]]))


def test_a_token_beyond_the_merges_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be below 6, the last merge's; got 6"):
        expand_merges(array([[6]]), np.array([[3, 4]], np.int32), 5)


def test_rows_with_a_pair() -> None:
    rows = MergedRows(array([[3, 4], [4, 3], [3, 4, 5]]))
    np.testing.assert_array_equal(rows.rows_with(3, 4), [0, 2])
    np.testing.assert_array_equal(rows.rows_with(9, 4), [])
    np.testing.assert_array_equal(rows.merge(3, 4, 6), [0, 2])
    np.testing.assert_array_equal(rows.rows_with(3, 4), [])
    np.testing.assert_array_equal(rows.rows_with(6, 5), [2])
