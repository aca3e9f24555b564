"""A process that was frozen for longer than a stall may take goes on when it is thawed."""

import signal
import subprocess
import sys
import time

import pytest

from finetune_api.reasons import FAILURES, FailureReason

CODE = FAILURES[FailureReason.TRAINING_STALLED].exit_code
LIMITS = """
import ctypes, time
from finetune_trainer.pod.liveness import heartbeat, watchdog
heartbeat.LEAST_SECONDS, watchdog.MARGIN_SECONDS, watchdog.LOOK_SECONDS = 1.5, 0.5, 0.1
"""
"""A stall shows after two seconds, which is long for a busy machine."""
WORK = """
with watchdog.watched(None, lambda failure: print(failure, flush=True)):
    time.sleep(0.5)  # the watchdog looks
    print("begun", flush=True)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        heartbeat.beat()
        time.sleep(0.05)
print("done", flush=True)
"""
HOLDS_THE_LOCK = """
watchdog.FUSE_SIGNAL = 1  # one second
with watchdog.watched(None, print):
    print("begun", flush=True)
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for ever, also after a signal
"""


def started(lines: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", LIMITS + lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_frozen_process_goes_on_when_it_is_thawed() -> None:
    process = started(WORK)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "done\n"
    assert process.returncode == 0


@pytest.mark.parametrize("frozen", [0, 4])
def test_a_process_that_hangs_ends_also_if_it_was_frozen(frozen: int) -> None:
    process = started(HOLDS_THE_LOCK)
    process.send_signal(signal.SIGSTOP)
    time.sleep(frozen)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == CODE
