"""A timer of the system beside the one that Python offers. Python has no function for the timers of POSIX."""

import ctypes
import os
from functools import lru_cache

CLOCK_MONOTONIC = 1
NANOSECONDS = 1_000_000_000


class _Event(ctypes.Structure):
    """What happens at the end of the time: struct sigevent of sigevent(3type), for a signal to the process."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),  # 0 is SIGEV_SIGNAL
        ("padding", ctypes.c_char * 48),
    )


class _Times(ctypes.Structure):
    """struct itimerspec of timer_settime(2)."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


def set_fuse(seconds: float, number: int) -> None:
    """Sends the signal `number` to this process in `seconds`; with 0, never. A time that was set before does not count
    any more. Raises OSError if the system has no timer left."""
    whole, part = divmod(round(seconds * NANOSECONDS), NANOSECONDS)
    timer, times = _timer(os.getpid(), number), _Times(0, 0, whole, part)
    _check(_libc().timer_settime(timer, 0, ctypes.byref(times), None))


@lru_cache(maxsize=1)
def _timer(process: int, number: int) -> ctypes.c_void_p:
    """Returns the timer of this process. A child process has none of the timers of its parent."""
    timer, event = ctypes.c_void_p(), _Event(None, number, 0, b"")
    _check(_libc().timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)))
    return timer


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    """Returns the library with the timers. Before version 2.34 of glibc they are in a library of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
