"""The signs of life of the main thread: what it is doing, and how often it has made progress. `watchdog` reads them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Heart:
    """What the process has shown so far. Every field is written by the main thread, `beats` by any thread."""

    beats = 0
    phase = "starting"
    step: int | None = None
    steps = 0
    slowest = 0.0
    quiet = 0.0
    steady = False
    began = 0
    """Value of `beats` at the start of the phase."""


def beat() -> None:
    """Says that the work goes on: a micro-batch, a token of each answer, some bytes of a file. May be called from any
    thread."""
    _Heart.beats += 1


def phase(doing: str, steady: bool = False) -> None:
    """Says what the main thread does from now on, as it follows "while" in a sentence: "training".

    `steady`: it shows progress again and again. Its first beat may take long, because kernels are compiled."""
    beat()
    _Heart.phase, _Heart.steady, _Heart.began = doing, steady, _Heart.beats


def stepped(step: int, steps: int, seconds: float) -> None:
    """Says that optimizer step `step` of `steps` is done. `seconds`: its duration."""
    _Heart.step, _Heart.steps, _Heart.slowest = step, steps, max(_Heart.slowest, seconds)
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


def beats() -> int:
    """Returns the number of beats so far."""
    return _Heart.beats


def patience(wanted: float | None) -> float:
    """Returns how many seconds the current work may show no progress. `wanted`: spec.runPolicy.stallTimeoutSeconds.

    The default is ten times the slowest step so far, and at least five minutes. Work that is not steady has at least
    five minutes."""
    usual = max(LEAST_SECONDS, SLOWER * _Heart.slowest) if wanted is None else wanted
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
SLOWER = 10
"""How many times the slowest step the default of the time without progress is."""
