"""Ends the process if its main thread makes no progress, with the stacks of all threads in the log.

A thread looks at the `heartbeat`. It counts its looks, not the time: a process that was frozen with its pod or its node
has not stalled.

The thread cannot run while a library holds Python's global lock (the GIL). For this case there are two timers of the
system, whose signals are handled without the lock. The first one, the fuse, allows the time that the thread allowed
when it last looked. Its signal does not end the process, because the process may have been frozen meanwhile: it starts
the second timer. If the thread runs, it stops that one and sets the fuse again. Else the handler of the second timer
prints the stacks and ends the process with the same exit code, but it cannot write a message."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness import heartbeat
from finetune_trainer.pod.liveness.fuse import set_fuse
from finetune_trainer.pod.liveness.pulse import Pulse
from finetune_trainer.pod.rank import by_rank, place
from finetune_trainer.pod.termination import stop_requested

LOOK_SECONDS = 1.0
MARGIN_SECONDS = 60.0
"""How much later than the thread the fuse ends. The thread needs some of it to write the status."""
FUSE_SIGNAL = 40
"""Signal of the fuse, one of the real-time signals, which nothing else in the trainer uses. Its number is also the time
of the second timer in seconds: the handler is the function `alarm` of C, which gets the number as its argument."""
EXIT_CODE = FAILURES[FailureReason.TRAINING_STALLED].exit_code


@contextmanager
def watched(wanted: float | None, report: Callable[[TrainerFailure], None]) -> Iterator[None]:
    """Ends the process with TrainingStalled if the main thread shows no progress inside the context.

    `wanted`: spec.runPolicy.stallTimeoutSeconds, or None for the default of `heartbeat.patience`. `report`: writes the
    failure to the termination message and the status. Call this in the main thread."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(wanted, report, over), name="watchdog", daemon=True)
    heartbeat.beat()
    with _timers():
        _arm(heartbeat.patience(wanted) + MARGIN_SECONDS)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _watch(wanted: float | None, report: Callable[[TrainerFailure], None], over: threading.Event) -> None:
    """Looks again and again, and ends the process after too many looks without progress."""
    seen, waited, steady = heartbeat.beats(), 0.0, False
    pulse = Pulse(place())
    while not over.wait(LOOK_SECONDS):
        if (now := heartbeat.beats()) != seen or stop_requested():  # after SIGTERM the kubelet ends the process
            if steady:
                heartbeat.waited(waited)
            seen, waited = now, 0.0
        heartbeat.looked(LOOK_SECONDS)
        waited, steady = waited + LOOK_SECONDS, heartbeat.is_steady()
        allowed = heartbeat.patience(wanted)
        _arm(allowed - waited + MARGIN_SECONDS)
        pulse.sign(allowed - waited + MARGIN_SECONDS + FUSE_SIGNAL)
        if waited >= allowed:
            _end(stall(waited), report)


def stall(seconds: float) -> TrainerFailure:
    """Returns the failure of a process whose main thread showed no progress for `seconds`."""
    finding = f"The trainer made no progress for {seconds:,.0f} s while {heartbeat.position()}."
    return TrainerFailure(FailureReason.TRAINING_STALLED, by_rank(finding), step=heartbeat.last_step())


def _end(failure: TrainerFailure, report: Callable[[TrainerFailure], None]) -> NoReturn:
    """Prints every thread's stack, reports the failure and ends the process, without waiting for any other thread."""
    _arm(MARGIN_SECONDS)
    print(f"{failure.message} The stacks of all threads follow.", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    try:
        report(failure)
    finally:
        os._exit(EXIT_CODE)


@contextmanager
def _timers() -> Iterator[None]:
    """Inside, the signal of the fuse starts the second timer. SIGALRM, the signal of that one, prints the stacks of all
    threads and ends the process with its own number, which is the exit code of TrainingStalled. No part of this needs
    the GIL: the handlers are functions of C."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    last = libc.signal(signal.SIGALRM, ctypes.cast(libc._exit, ctypes.c_void_p))
    first = libc.signal(FUSE_SIGNAL, ctypes.cast(libc.alarm, ctypes.c_void_p))
    faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
    try:
        yield
    finally:
        _arm(0)
        faulthandler.unregister(signal.SIGALRM)
        libc.signal(FUSE_SIGNAL, first)
        libc.signal(signal.SIGALRM, last)


def _arm(seconds: float) -> None:
    """Sets the fuse to `seconds`, or stops it with 0, and stops the second timer."""
    set_fuse(seconds, FUSE_SIGNAL)
    signal.setitimer(signal.ITIMER_REAL, 0)
