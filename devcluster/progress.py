"""Shows one live line per step with its elapsed time. Prints plain lines if the output is no terminal."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)
QUIET_INTERVAL_SECONDS = 15


class ClusterError(Exception):
    """Something is missing or did not start. The message has the remedy."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Shows `title` and the elapsed time until the block ends."""
    started = time.monotonic()
    ended = threading.Event()
    show = _spin if console.is_terminal else _report
    thread = threading.Thread(target=show, args=(title, started, ended), daemon=True)
    thread.start()
    mark = "[red]failed[/]"
    try:
        yield
        mark = "[green]done[/]"
    finally:
        ended.set()
        thread.join()
        console.print(f"  {escape(title):<60} {mark} {_elapsed(started):>7}")


def _spin(title: str, started: float, ended: threading.Event) -> None:
    with console.status("") as status:
        while not ended.wait(0.2):
            status.update(f"{escape(title)} [dim]{_elapsed(started)}[/]")


def _report(title: str, started: float, ended: threading.Event) -> None:
    while not ended.wait(QUIET_INTERVAL_SECONDS):
        console.print(f"  {escape(title)} ... {_elapsed(started)}")


def _elapsed(started: float) -> str:
    seconds = time.monotonic() - started
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
