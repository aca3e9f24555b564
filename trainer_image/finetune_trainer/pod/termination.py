"""Stops the process cleanly, at SIGTERM or for another cause, and writes the termination message of the pod."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import ClassVar

from finetune_api import names
from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer.pod.failure import SIGTERM_RECEIVED, StopRequested, TrainerFailure, failure_of, stopped
from finetune_trainer.pod.rank import place

MESSAGE_BYTES = 4096
"""Most bytes of a termination message that the kubelet reads."""
DEFAULT_LOG = Path("/dev/termination-log")
LOG_VARIABLE = "TERMINATION_LOG"
"""Environment variable with the path of the termination message, if it is another one."""


GRACE_SECONDS = 120.0
"""Grace period of the operator's pods, for a pod whose environment does not name it."""
AGAIN_SECONDS = 5.0
"""Time after which StopRequested is raised again if the pod has not reported its end."""
RESERVED_SECONDS = 15.0
"""Part of the grace period that is kept for the status, the termination message and the end of the process."""
RESERVED_SHARE = 0.25
"""Most of a short grace period that is kept for them."""
OVERDUE = 2 / 3
"""Share of the reserved time that is left when the deferral of a stop ends, whatever the work waits for. The work has
had a third of it to end by itself, and the launcher of the ranks kills them when a third is left."""


class _Stop:
    """Whether the process must stop, since when and why, and whether the stop is deferred until the program can stop
    cleanly."""

    requested = False
    why = SIGTERM_RECEIVED
    deferred = False
    since = 0.0
    reported = False
    """Whether the end of this process has been written."""
    unreported: ClassVar[list[int]] = []
    """The signal, until the termination message is written."""


class _Done:
    """How far the attempt is, for the termination message."""

    step: int | None = None
    checkpoint_step: int | None = None
    kept_results: int | None = None


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _Stop.reported:
        return  # the process is ending, and nothing may replace its message
    if not _Stop.requested:
        _begin(number, None)
    if not _Stop.deferred or _seconds_deferred() <= 0:
        raise StopRequested


def stop_because(why: str) -> None:
    """Stops this process, and the other ranks, as SIGTERM does. `why`: the cause, as a sentence. Has no effect if the
    process is stopping or has reported its end. Call it in the main thread.

    The kubelet does not know of this stop. So the process ends itself if it has not reported its end after the grace
    period. Raises StopRequested, except inside `stop_deferred`."""
    if _Stop.requested or _Stop.reported:
        return
    _Stop.why = why
    _begin(signal.SIGTERM, monotonic() + working_seconds(0.0))
    if not _Stop.deferred:
        raise StopRequested


def _begin(number: int, deadline: float | None) -> None:
    """Begins the stop. `number`: the signal that repeats it. `deadline`: when the process ends itself; None if the
    kubelet does."""
    _Stop.requested, _Stop.since, _Stop.unreported = True, monotonic(), [number]
    pass_on()
    # Not a threading.Thread: its lock may be held by the code that the signal has interrupted.
    _thread.start_new_thread(_repeat, (_Stop.unreported, deadline))


def pass_on() -> None:
    """Tells the launcher of the ranks that this one was asked to stop, so that it asks the others too."""
    if launcher := place().launcher:
        os.kill(launcher, signal.SIGTERM)


def _repeat(unreported: list[int], deadline: float | None) -> None:
    """Sends the signal to the main thread again every few seconds, in case a library swallows StopRequested, and when
    the deferral of the stop ends. Ends the process after `deadline`."""
    while True:
        left = _seconds_deferred()
        sleep(min(AGAIN_SECONDS, left) if left > 0 else AGAIN_SECONDS)
        if not unreported:
            return
        if deadline is not None and monotonic() > deadline:
            os._exit(FAILURES[FailureReason.PREEMPTED].exit_code)
        signal.pthread_kill(threading.main_thread().ident or 0, unreported[0])


def handle_sigterm() -> None:
    """Makes SIGTERM raise StopRequested in the main thread, except inside `stop_deferred`. Call it once, at the
    start."""
    _Done.step = _Done.checkpoint_step = _Done.kept_results = None
    signal.signal(signal.SIGTERM, _on_sigterm)
    _Stop.unreported.clear()
    _Stop.reported, _Stop.why = False, SIGTERM_RECEIVED


@contextmanager
def stop_deferred() -> Iterator[None]:
    """Defers SIGTERM: inside, StopRequested is raised by `check_stop`, and when the grace period is nearly over, so
    that work that hangs leaves time for the report. Raises StopRequested at the end if SIGTERM was received, unless it
    is inside another one."""
    outer, _Stop.deferred = _Stop.deferred, True
    try:
        yield
    finally:
        _Stop.deferred = outer
    if _Stop.requested and not outer:
        raise StopRequested


def stop_requested() -> bool:
    """Returns whether the process must stop: whether SIGTERM was received, or `stop_because` was called."""
    return _Stop.requested


def why_stopped() -> str:
    """Returns why the process must stop, as a sentence."""
    return _Stop.why


def is_reported() -> bool:
    """Returns whether the end of this process has been written."""
    return _Stop.reported


def check_stop() -> None:
    """Raises StopRequested if SIGTERM was received. Long work inside `stop_deferred` calls this between its parts."""
    if _Stop.requested:
        raise StopRequested


def failure_after_stop(error: BaseException) -> TrainerFailure:
    """Returns the failure for any exception, like `failure_of`. In a stop an unexpected exception comes from a library
    that StopRequested has interrupted."""
    failure = failure_of(error)
    interrupted = _Stop.requested and failure.reason is FailureReason.TRAINER_CRASHED
    return stopped(_Stop.why) if interrupted or isinstance(error, StopRequested) else failure


def seconds_left() -> float:
    """Returns how long the pod may still work after SIGTERM, before it has to report how it ended.

    The environment variable names.GRACE_VARIABLE has the seconds from SIGTERM to SIGKILL."""
    passed = monotonic() - _Stop.since if _Stop.requested else 0.0
    return max(0.0, working_seconds() - passed)


def _seconds_deferred() -> float:
    """Returns for how many seconds the stop that has begun is deferred yet, at most. It is negative afterwards."""
    return _Stop.since + working_seconds(OVERDUE) - monotonic()


def working_seconds(reserved: float = 1.0) -> float:
    """Returns how long the pod may work after SIGTERM. `reserved`: share of the reserved time that is kept."""
    grace = float(os.environ.get(names.GRACE_VARIABLE) or GRACE_SECONDS)
    return grace - reserved * min(RESERVED_SECONDS, RESERVED_SHARE * grace)


def steps_done(step: int, checkpoint_step: int | None) -> None:
    """Notes the last whole step, and the step of the last uploaded checkpoint, for the termination message."""
    _Done.step, _Done.checkpoint_step = step, checkpoint_step


def results_kept(results: int) -> None:
    """Notes how many results a later attempt can take over, for the termination message."""
    _Done.kept_results = results


def write_termination_message(message: TerminationMessage) -> None:
    """Writes `message` to $TERMINATION_LOG, or to the kubelet's default path if that path exists. The end of the
    process is decided with it: SIGTERM has no effect any more.

    If the disk of the node is full, the log says so: the exit code and the job's status still tell the reason."""
    _Stop.reported = True
    _Stop.unreported.clear()
    path = Path(os.environ.get(LOG_VARIABLE, DEFAULT_LOG))
    if path == DEFAULT_LOG and not path.exists():
        return
    try:
        path.write_text(termination_json(message))
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, 0)  # the reader then goes by the exit code, and not by half a message
        print(f"The termination message could not be written to {path}: {error.strerror}.", file=sys.stderr, flush=True)


def write_failure(failure: TrainerFailure) -> None:
    """Leaves the termination message of a failure. Call this before anything that waits for another process: a pod that
    gets SIGTERM is killed after its grace period."""
    text = failure.for_the_operator
    step = _Done.step if failure.step is None else failure.step
    message = TerminationMessage(
        reason=failure.reason,
        message=text,
        step=step,
        checkpoint_step=_Done.checkpoint_step,
        kept_results=_Done.kept_results,
        agreed=failure.agreed or None,
    )
    write_termination_message(message)


def termination_json(message: TerminationMessage) -> str:
    """Returns `message` as JSON of at most 4096 bytes. Its text is cut if necessary."""
    text = message.model_dump_json(by_alias=True, exclude_none=True)
    while len(text.encode()) > MESSAGE_BYTES:
        excess = len(text.encode()) - MESSAGE_BYTES
        # A character needs at most 6 bytes in JSON, and at least one is cut each time, so the loop ends.
        kept = message.message[: -max(excess // 6, 1) - 3].rstrip()
        message = message.model_copy(update={"message": kept + "..."})
        text = message.model_dump_json(by_alias=True, exclude_none=True)
    return text
