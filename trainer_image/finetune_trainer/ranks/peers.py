"""How a rank learns that another one has failed, and why.

The launcher writes the cause into the folder in which the ranks meet, and sends SIGUSR1 to the others. A rank that only
sees a connection break waits for this word. So every rank reports the same cause."""

import signal
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import PeerFailed, StopRequested, TrainerFailure
from finetune_trainer.pod.rank import by_rank, place
from finetune_trainer.pod.termination import is_reported, stop_requested

CAUSE = "cause.json"
"""File with the termination message of the rank that failed first."""
WORD_SECONDS = 10.0
"""How long a rank waits for the word of the launcher after a connection broke."""
LOOK_SECONDS = 0.05


class _Heard:
    """Whether this rank has learnt that another one has failed."""

    failed = False


def handle_failed_peer() -> None:
    """Makes SIGUSR1 raise PeerFailed in the main thread, once: a rank that is ending must not be interrupted again.
    Call it once, at the start of a rank."""
    _Heard.failed = False
    signal.signal(signal.SIGUSR1, _on_failed_peer)


def _on_failed_peer(number: int, frame: FrameType | None) -> None:
    if not _Heard.failed and not is_reported():
        raise _failed(place().meeting)


def _failed(meeting: Path) -> PeerFailed:
    _Heard.failed = True
    return PeerFailed(told(meeting))


def told(meeting: Path) -> TrainerFailure:
    """Returns the failure of another rank, as the launcher told it."""
    message = TerminationMessage.model_validate_json((meeting / CAUSE).read_bytes())
    known = isinstance(message.reason, FailureReason)
    reason = FailureReason(message.reason) if known else FailureReason.PEER_LOST
    return TrainerFailure(reason, message.message, step=message.step)


def peer_lost(error: RuntimeError) -> BaseException:
    """Returns what a rank raises after a connection to another one broke with `error`.

    It is StopRequested if this rank was asked to stop, since the others may have ended already. It is PeerFailed if the
    launcher knows the cause, or else TrainerFailure PeerLost."""
    meeting, deadline = place().meeting, monotonic() + WORD_SECONDS
    while place().launcher and monotonic() < deadline:
        if stop_requested():
            return StopRequested()
        if (meeting / CAUSE).exists():
            return _failed(meeting)
        sleep(LOOK_SECONDS)
    cause = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
    finding = f"The connection to another process of the training broke: {cause}."
    return TrainerFailure(FailureReason.PEER_LOST, by_rank(finding))
