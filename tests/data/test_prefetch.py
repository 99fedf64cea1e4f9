import subprocess
import sys
import threading
import time
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
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


ABANDONED = """
import faulthandler, gc, sys, threading
from rankloom.data.blocks import read_ahead
from rankloom.data.prefetch import prefetch

def abandon(stream):
    next(stream)
    cycle = [stream]
    cycle.append(cycle)

maintain = threading._maintain_shutdown_locks
def collect_first():
    gc.collect()
    return maintain()

gc.disable()
threading._maintain_shutdown_locks = collect_first  # called by a starting thread, under its lock
faulthandler.dump_traceback_later(20, exit=True)
for make in (read_ahead, prefetch):
    abandon(make(iter([b"1", b"2", b"3"])))
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(
    not hasattr(threading, "_maintain_shutdown_locks"), reason="Python's threads have no such lock"
)
def test_a_stream_that_a_starting_thread_collects_does_not_block_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
