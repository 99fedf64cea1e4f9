"""Making the next items on a background thread while the present one is used."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_END = object()


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made ahead on one background thread.

    Args:
        items: the iterator; only the background thread touches it.
        depth: items that may wait to be taken.

    Yields:
        The items in their order. An error of `items` is raised where its item would stand. When
        the consumer stops early, the thread ends soon after.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
        except BaseException as error:  # noqa: BLE001  # handed to the consumer, who raises it
            offer(_Failed(error))
        else:
            offer(_END)

    thread = threading.Thread(target=work, name="rankloom-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if item is _END:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        # Not joined: after an error it is the garbage collector that closes this generator, maybe
        # in a thread that is just starting and holds the lock that joining another one takes.
        stopped.set()
