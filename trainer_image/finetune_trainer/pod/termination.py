"""Handles SIGTERM, and writes the termination message of the pod."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune_api.bundle import TerminationMessage
from finetune_trainer.pod.failure import StopRequested, TrainerFailure

MESSAGE_BYTES = 4096
"""Most bytes of a termination message that the kubelet reads."""
DEFAULT_LOG = Path("/dev/termination-log")


class _Stop:
    """Whether SIGTERM was received, and whether it is deferred until the end of the current step."""

    requested = False
    deferred = False


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _Stop.requested = True
    if not _Stop.deferred:
        raise StopRequested


def handle_sigterm() -> None:
    """Makes SIGTERM raise StopRequested in the main thread, except inside `stop_deferred`."""
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextmanager
def stop_deferred() -> Iterator[None]:
    """Defers SIGTERM: inside, it only makes `stop_requested` true, so that a step can finish. Raises StopRequested at
    the end if SIGTERM was received."""
    _Stop.deferred = True
    try:
        yield
    finally:
        _Stop.deferred = False
    if _Stop.requested:
        raise StopRequested


def stop_requested() -> bool:
    """Returns whether SIGTERM was received. The training loop checks this between steps."""
    return _Stop.requested


def write_termination_message(message: TerminationMessage) -> None:
    """Writes `message` to $TERMINATION_LOG, or to the kubelet's default path if that path exists."""
    path = Path(os.environ.get("TERMINATION_LOG", DEFAULT_LOG))
    if path != DEFAULT_LOG or path.exists():
        path.write_text(termination_json(message))


def write_failure(failure: TrainerFailure) -> None:
    """Leaves the termination message of a failure. Call this before anything that waits for another process: a pod that
    gets SIGTERM is killed after its grace period."""
    text = failure.for_the_operator
    write_termination_message(TerminationMessage(reason=failure.reason, message=text, step=failure.step))


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
