"""The signs of life of the main thread: what it is doing, and how often it has made progress. `watchdog` reads them."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class _Heart:
    """What the process has shown so far. The main thread writes every field except `beats`, which any thread writes,
    and those that the watchdog writes."""

    beats = 0
    phase = "starting"
    step: int | None = None
    steps = 0
    slowest = 0.0
    longest_wait = 0.0
    """The longest time without a beat in steady work. Written by the watchdog."""
    looked = 0.0
    """For how many seconds the watchdog has looked. Written by the watchdog."""
    looked_before = 0.0
    """Value of `looked` after the last step."""
    quiet = 0.0
    steady = by_steps = False
    began = 0
    """Value of `beats` at the start of the phase."""


def beat() -> None:
    """Says that the work goes on: a micro-batch, a token of each answer, some bytes of a file. May be called from any
    thread."""
    _Heart.beats += 1


def attended(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items, and beats at each."""
    for item in items:
        beat()
        yield item


def phase(doing: str, steady: bool = False, by_steps: bool = False) -> None:
    """Says what the main thread does from now on, as it follows "while" in a sentence: "training".

    `steady`: it shows progress again and again. Its first beat may take long, because kernels are compiled. `by_steps`:
    only its steps say how long it may take, because a slow token of the evaluation says nothing about them."""
    beat()
    _Heart.phase, _Heart.steady, _Heart.by_steps, _Heart.began = doing, steady, by_steps, _Heart.beats


def stepped(step: int, steps: int, seconds: float) -> None:
    """Says that optimizer step `step` of `steps` is done. `seconds`: its duration.

    The watchdog did not look while the process was frozen, so that time does not make the step a slow one."""
    looked, _Heart.looked_before = _Heart.looked - _Heart.looked_before, _Heart.looked
    ran = min(seconds, looked + LATE_SECONDS) if _Heart.looked else seconds
    _Heart.step, _Heart.steps, _Heart.slowest = step, steps, max(_Heart.slowest, ran)
    beat()


@contextmanager
def quiet_work(seconds: float) -> Iterator[None]:
    """Says that the work inside may show no progress for `seconds`, such as the loading of a model in one call. Has no
    effect in other threads than the main thread, because they do not hold up the job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _Heart.quiet = _Heart.quiet, max(_Heart.quiet, seconds)
    beat()
    try:
        yield
    finally:
        _Heart.quiet = before
        beat()


def disk_work(size: int) -> AbstractContextManager[None]:
    """Allows the work inside the time to read or write `size` bytes of a disk once. A library does so in one call that
    shows no progress."""
    return quiet_work(LEAST_SECONDS + size / SLOW_DISK)


def waited(seconds: float) -> None:
    """Says that steady work went on after `seconds` without a beat."""
    _Heart.longest_wait = max(_Heart.longest_wait, seconds)


def looked(seconds: float) -> None:
    """Says that the watchdog has looked for `seconds` more."""
    _Heart.looked += seconds


def is_steady() -> bool:
    """Returns whether the current work shows progress again and again, and has begun to."""
    return _Heart.steady and _Heart.beats > _Heart.began and not _Heart.quiet


def beats() -> int:
    """Returns the number of beats so far."""
    return _Heart.beats


def patience(wanted: float | None) -> float:
    """Returns how many seconds the current work may show no progress. `wanted`: spec.runPolicy.stallTimeoutSeconds.

    The default is ten times the slowest step so far, or outside the training the longest wait of steady work so far,
    and at least five minutes. Work that is not steady has at least five minutes."""
    slowest = _Heart.slowest if _Heart.by_steps else max(_Heart.slowest, _Heart.longest_wait)
    usual = max(LEAST_SECONDS, SLOWER * slowest) if wanted is None else wanted
    steady = _Heart.steady and _Heart.beats > _Heart.began
    return max(usual, _Heart.quiet, 0.0 if steady else LEAST_SECONDS)


def last_step() -> int | None:
    """Returns the number of the last optimizer step, counted from 1, or None before the first one."""
    return _Heart.step


def position() -> str:
    """Returns what the main thread does and the last step, as it follows "while" in a sentence."""
    step = _Heart.step
    return _Heart.phase if step is None else f"{_Heart.phase}, after step {step:,} of {_Heart.steps:,}"


LEAST_SECONDS = 300.0
"""The least default of the time without progress."""
SLOW_DISK = 10_000_000
"""Bytes per second at which a disk reads or writes in the slowest case that is not a stall."""
LATE_SECONDS = 2.0
"""How long the last look of the watchdog may be ago."""
SLOWER = 10
"""How many times the slowest step, or the longest wait, the default of the time without progress is."""
