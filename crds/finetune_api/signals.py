"""What a signal that ended a process of the trainer shows."""

import signal

from finetune_api.reasons import FailureReason

_ASKED_TO_STOP = (
    FailureReason.PREEMPTED,
    "which means that the trainer was asked to stop and ended before it could report the cause",
)
_SIGNALS = {
    signal.SIGKILL: (
        FailureReason.KILLED,
        "but the container had not exceeded its memory limit: the node ran out of memory, or something else killed the "
        "process",
    ),
    signal.SIGTERM: _ASKED_TO_STOP,
    signal.SIGINT: _ASKED_TO_STOP,
    signal.SIGHUP: _ASKED_TO_STOP,
    signal.SIGBUS: (
        FailureReason.DISK_FULL,
        "which happens when a memory-mapped file cannot be read or written: /dev/shm, the scratch volume or the node's "
        "disk was full",
    ),
    signal.SIGABRT: (FailureReason.TRAINER_CRASHED, "which happens when a library aborts because of an error"),
    signal.SIGSEGV: (FailureReason.TRAINER_CRASHED, "which happens when a library or a driver accesses invalid memory"),
    signal.SIGILL: (
        FailureReason.TRAINER_CRASHED,
        "which happens when a library was built for a newer CPU than that of the node",
    ),
    signal.SIGSYS: (
        FailureReason.TRAINER_CRASHED,
        "which happens when the pod's seccomp profile forbids a system call",
    ),
}
"""Failure reason and explanation of each signal that ends a trainer. The explanation follows the name of the signal."""


def ended_by(code: int, process: str = "the trainer") -> tuple[str, FailureReason]:
    """Return what an exit code above 128 shows: a sentence, and the failure reason. The code contains a signal.

    `process`: what the sentence calls the process that ended."""
    try:
        number = signal.Signals(code - 128)
    except ValueError:
        return without_cause(code, process), FailureReason.TRAINER_CRASHED
    reason, words = _SIGNALS.get(number, (FailureReason.TRAINER_CRASHED, "without reporting a cause"))
    return f"Signal {number.name} ended {process} (exit code {code}), {words}.", reason


def without_cause(code: int, process: str = "the trainer", named: str = "") -> str:
    """Return the sentence that a process ended with an exit code and nothing else is known."""
    return f"{process[:1].upper()}{process[1:]} ended with exit code {code}{named} without reporting a cause."
