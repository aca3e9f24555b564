"""The ways a pod fails, as exceptions, and which one any exception stands for."""

import errno
import traceback
from pathlib import Path

from finetune_api.reasons import FailureReason, sentence

_PACKAGE = Path(__file__).parents[1]


class TrainerFailure(Exception):  # noqa: N818 - the API calls these failures
    """A failure somebody can act on: a word of the API and a sentence naming what was found where.

    The sentence goes to the job's status: it may name files, lines, fields and columns, never a row's content."""

    def __init__(self, reason: FailureReason, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.step = reason, message, step

    @property
    def for_the_status(self) -> str:
        """What the pod's own condition says: the finding and its remedy. A pod that was told to stop gives no remedy,
        because its Job may be suspended and go on, which only the operator knows."""
        return self.message if self.reason is FailureReason.PREEMPTED else sentence(self.reason, self.message)


class Superseded(Exception):  # noqa: N818 - it is no error
    """What this pod does is no longer wanted, or nobody can learn of it: another attempt writes the job's status, the
    job has ended or is gone, or the API server refuses this pod for good."""


class StopRequested(BaseException):
    """SIGTERM: the pod has to make room. No Exception, so that nothing on the way swallows it."""


def failure_of(error: BaseException) -> TrainerFailure:
    """The failure any exception stands for. What is not expected is TrainerCrashed."""
    if isinstance(error, TrainerFailure):
        return error
    if isinstance(error, StopRequested):
        return TrainerFailure(FailureReason.PREEMPTED, "The pod received SIGTERM before its work was done.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TrainerFailure(
            FailureReason.DISK_FULL, f"No disk space is left for {error.filename or 'the scratch folder'}."
        )
    if isinstance(error, RuntimeError) and (reason := _gpu_reason(error)):
        return TrainerFailure(reason, _first_line(error))
    return TrainerFailure(FailureReason.TRAINER_CRASHED, _crash(error))


def _gpu_reason(error: RuntimeError) -> FailureReason | None:
    """Whether a torch error is the GPU's: its memory, or the device itself. By name: preflight must not import torch to
    ask. cuBLAS reports a full GPU as a plain RuntimeError."""
    name = type(error).__name__
    if name == "OutOfMemoryError" or "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
        return FailureReason.GPU_OUT_OF_MEMORY
    return FailureReason.GPU_FAULT if name == "AcceleratorError" else None


def _crash(error: BaseException) -> str:
    """Class and place of an unexpected error. Its text only where it comes from the system or the GPU: other errors
    may quote a row, and rows never reach a status."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    place = f" in {ours[-1].name} ({Path(ours[-1].filename).relative_to(_PACKAGE)}:{ours[-1].lineno})" if ours else ""
    text = f": {_first_line(error)}" if type(error) in (RuntimeError, MemoryError) or isinstance(error, OSError) else ""
    return f"{type(error).__name__}{place}{text}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
