import threading
from collections.abc import Iterator

import pytest

from rankloom.data.prefetch import prefetch


def test_items_come_in_order() -> None:
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []


def test_items_are_made_ahead_but_not_without_bound() -> None:
    made = []
    first_taken = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    stream = prefetch(items(), depth=2)
    assert made == []
    assert next(stream) == 0
    first_taken.wait(0.2)
    assert 1 < len(made) <= 4  # one taken, two waiting, one in hand
    assert list(stream) == list(range(1, 10))


def test_error_is_raised_where_its_item_would_stand() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken shard")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken shard"):
        next(stream)


def test_stopping_early_ends_the_thread() -> None:
    before = threading.active_count()
    stream = prefetch(iter(range(1000)))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
