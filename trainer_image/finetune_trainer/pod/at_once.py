"""Does independent work in several threads, and ends all of it when one part fails or the pod must stop."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TypeVar

AT_ONCE = 4
"""Number of files that are copied at the same time. Each of them may use several connections."""
Item = TypeVar("Item")


class Abandoned(Exception):  # noqa: N818 - not an error
    """Another part of the work failed, or the pod must stop."""


def each_at_once(work: Callable[[Item, Callable[[], None]], None], items: Iterable[Item]) -> None:
    """Calls `work` for every item in AT_ONCE threads, and waits in this thread.

    `work` gets the item and a function. It calls the function again and again. The function raises Abandoned if the
    work is no longer needed. Raises the first exception of a call, or an exception that interrupts the wait. Neither
    waits for the other calls, because one of them may wait for a server."""
    abandoned = Event()

    def needed() -> None:
        if abandoned.is_set():
            raise Abandoned

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for done in as_completed([pool.submit(work, item, needed) for item in items]):
            done.result()
    finally:
        abandoned.set()
        pool.shutdown(wait=False, cancel_futures=True)
