"""How a pod ends: what SIGTERM does, and the termination message that stays behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune_api.bundle import TerminationMessage
from finetune_trainer.pod.failure import StopRequested, TrainerFailure

MESSAGE_BYTES = 4096
"""Longest termination message the kubelet reads."""
DEFAULT_LOG = Path("/dev/termination-log")


class _Stop:
    """Whether SIGTERM came, and whether it waits for the running step to end."""

    requested = False
    deferred = False


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _Stop.requested = True
    if not _Stop.deferred:
        raise StopRequested


def handle_sigterm() -> None:
    """From now on SIGTERM raises StopRequested in the main thread, unless `stop_deferred` holds it back."""
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextmanager
def stop_deferred() -> Iterator[None]:
    """Inside, SIGTERM only makes `stop_requested` true, so that a step ends whole; on leaving, StopRequested is raised
    if it came."""
    _Stop.deferred = True
    try:
        yield
    finally:
        _Stop.deferred = False
    if _Stop.requested:
        raise StopRequested


def stop_requested() -> bool:
    """Whether SIGTERM came. The training loop polls it between steps."""
    return _Stop.requested


def write_termination_message(message: TerminationMessage) -> None:
    """Leaves `message` where the kubelet looks: $TERMINATION_LOG, or else the default where it exists."""
    path = Path(os.environ.get("TERMINATION_LOG", DEFAULT_LOG))
    if path != DEFAULT_LOG or path.exists():
        path.write_text(termination_json(message))


def write_failure(failure: TrainerFailure) -> None:
    """Leaves the termination message of a failure. Call this before anything that waits for another process: a pod that
    gets SIGTERM is killed after its grace period."""
    write_termination_message(TerminationMessage(reason=failure.reason, message=failure.message, step=failure.step))


def termination_json(message: TerminationMessage) -> str:
    """`message` as JSON of at most 4096 bytes; its sentence is cut where needed."""
    text = message.model_dump_json(by_alias=True, exclude_none=True)
    while len(text.encode()) > MESSAGE_BYTES:
        excess = len(text.encode()) - MESSAGE_BYTES
        # A character can take up to 6 bytes in JSON, so this may cut a little too much, and never loops for ever.
        kept = message.message[: -max(excess // 6, 1) - 3].rstrip()
        message = message.model_copy(update={"message": kept + "..."})
        text = message.model_dump_json(by_alias=True, exclude_none=True)
    return text
