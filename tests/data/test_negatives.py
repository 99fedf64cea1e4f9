import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data.negatives import draw_negatives


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_never_an_item_of_the_users_own(
    rows: list[tuple[int, int]], per_positive: int, seed: int
) -> None:
    users, items = np.array(rows, dtype=np.int32).T
    own: dict[int, set[int]] = {}
    for user, item in rows:
        own.setdefault(user, set()).add(item)
    every = set(items.tolist())
    drawn = draw_negatives(users, items, per_positive, seed)
    assert drawn.shape == (len(rows), per_positive)
    for (user, _), found in zip(rows, drawn.tolist(), strict=True):
        if own[user] == every:
            assert found == [-1] * per_positive
        else:
            assert set(found) <= every - own[user]


def test_seeded_and_uniform_over_free_items() -> None:
    users = np.zeros(4000, dtype=np.int32)
    users[-5:] = 1
    items = np.full(4000, 9, dtype=np.int32)
    items[-5:] = [1, 3, 4, 5, 9]
    drawn = draw_negatives(users, items, 1, seed=1)
    counts = np.bincount(drawn[:-5, 0], minlength=10)
    assert counts[[1, 3, 4, 5]].sum() == 3995
    # 3,995 draws over 4 items: 6 standard deviations are 164.
    assert np.all(np.abs(counts[[1, 3, 4, 5]] - 3995 / 4) < 164)
    assert np.all(drawn[-5:] == -1)
    assert np.array_equal(drawn, draw_negatives(users, items, 1, seed=1))
    assert not np.array_equal(drawn, draw_negatives(users, items, 1, seed=2))


def test_a_user_with_one_free_item_of_many_ends() -> None:
    items = np.arange(5000, dtype=np.int32)
    users = np.zeros(5000, dtype=np.int32)
    users[1234] = 1
    drawn = draw_negatives(users, items, 2, seed=0)
    own = np.delete(np.arange(5000), 1234)
    assert np.all(drawn[own] == 1234)
    assert np.all(drawn[1234] != 1234)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(0, 2)), min_size=1, max_size=60
    ),
    st.integers(1, 3),
)
def test_within_a_value_the_rows_are_a_log_of_their_own(
    rows: list[tuple[int, int, int]], per_positive: int
) -> None:
    users, items, within = np.array(rows, dtype=np.int32).T
    drawn = draw_negatives(users, items, per_positive, 0, within)
    for (user, _, value), found in zip(rows, drawn.tolist(), strict=True):
        there = {item for _, item, other in rows if other == value}
        own = {item for who, item, other in rows if (who, other) == (user, value)}
        assert set(found) <= ((there - own) or {-1})
    one = np.zeros(len(rows), dtype=np.int32)
    plain = draw_negatives(users, items, per_positive, 0)
    assert np.array_equal(draw_negatives(users, items, per_positive, 0, one), plain)
