"""The exceptions with which a pod fails, and the conversion of any exception to one of them."""

import errno
import re
import traceback
from pathlib import Path

from finetune_api.reasons import FailureReason, sentence, with_remedy
from finetune_trainer.pod.rank import by_rank

NCCL_GPU_ERROR = "Cuda failure"
"""Begins the line of an error of NCCL that names an error of the GPU."""
GPU_OUT_OF_MEMORY = re.compile(
    r"""^(CUDA|HIP)\ .*out\ of\ memory  # the runtime, the driver, torch's own allocator
    |^Triton\ Error\ .*out\ of\ memory
    |^Cuda\ failure\ .*out\ of\ memory  # NCCL
    |CU[A-Z]+(_STATUS)?_ALLOC_FAILED  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT
    |NVML_SUCCESS\ ==  # torch asks NVML for the memory in use only when an allocation has failed
    """,
    re.VERBOSE | re.MULTILINE,
)
"""Matches a line of an error that a GPU's memory was too small. Only some of these errors have a class of their own."""
_NUMBER = re.compile(r"\(os error (\d+)\)\s*$")
"""Matches the end of an error of the system that a library written in Rust reports, such as safetensors."""
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
SIGTERM_RECEIVED = "The pod received SIGTERM."
"""Why most pods stop."""
_PACKAGE = Path(__file__).parents[1]


class TrainerFailure(Exception):  # noqa: N818 - the API calls these failures
    """A failure: a reason of the API, and a message that names what was found and where.

    `remedy`: what to do about this finding, if that is more exact than the remedy of the reason. `step`: the optimizer
    step of the failure. `agreed`: whether all ranks fail with it, because one has told the others. The message is
    written to the job's status. It may name files, lines, fields and columns, but never the content of a row."""

    def __init__(
        self,
        reason: FailureReason,
        finding: str,
        remedy: str | None = None,
        *,
        step: int | None = None,
        agreed: bool = False,
    ) -> None:
        super().__init__(f"{finding} {remedy}" if remedy else finding)
        self.reason, self.finding, self.remedy, self.step, self.agreed = reason, finding, remedy, step, agreed

    @property
    def message(self) -> str:
        """The finding, and its own remedy if it has one."""
        return str(self)

    @property
    def for_the_operator(self) -> str:
        """The finding, from which `finetune_api.reasons.sentence` makes the message that a tenant reads."""
        return with_remedy(self.finding, self.remedy) if self.remedy else self.finding

    @property
    def for_the_status(self) -> str:
        """The message for the condition that the pod writes: the finding and a remedy. A pod that received SIGTERM
        writes no remedy, because only the operator knows if its Job is suspended and will resume."""
        return self.finding if self.reason is FailureReason.PREEMPTED else sentence(self.reason, self.for_the_operator)


class Cancelled(Exception):  # noqa: N818 - not an error
    """Work beside the main thread is no longer needed."""


class Superseded(Exception):  # noqa: N818 - not an error
    """The work of this pod is no longer needed, or its status cannot be written. Another attempt writes the job's
    status, the job has ended or was deleted, or the API server refuses this pod permanently."""


class StopRequested(BaseException):
    """SIGTERM, or a cause that `termination.stop_because` names: the pod must stop. Not a subclass of Exception, so
    that no handler for Exception catches it."""


class PeerFailed(BaseException):
    """Another rank of the training has failed, so this one must end too. Not a subclass of Exception, so that no
    handler for Exception catches it.

    `cause`: the failure of the other rank, which all ranks report."""

    def __init__(self, cause: TrainerFailure) -> None:
        super().__init__(cause.message)
        self.cause = cause


def failure_of(error: BaseException) -> TrainerFailure:
    """Returns the failure for any exception. The reason of an unexpected exception is TrainerCrashed."""
    if isinstance(error, TrainerFailure):
        return error
    if isinstance(error, PeerFailed):
        return error.cause
    if isinstance(error, StopRequested):
        return stopped(SIGTERM_RECEIVED)
    if _system_number(error) in _DISK_FULL:
        full = getattr(error, "filename", None) or "the scratch folder"
        return TrainerFailure(FailureReason.DISK_FULL, f"No disk space is left for {full}.")
    if isinstance(error, RuntimeError) and (reason := _gpu_reason(error)):
        return TrainerFailure(reason, by_rank(_gpu_line(error)), agreed=getattr(error, "agreed", False))
    return TrainerFailure(FailureReason.TRAINER_CRASHED, by_rank(_crash(error)))


def stopped(why: str) -> TrainerFailure:
    """Returns the failure of a pod that had to stop. `why`: the cause, as a sentence."""
    return TrainerFailure(FailureReason.PREEMPTED, f"{why} Its work was not done.")


def _system_number(error: BaseException) -> int | None:
    """Returns the number of the system's error that `error` reports, or None. The weights are written by safetensors,
    whose errors are no OSError."""
    if isinstance(error, OSError):
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def _gpu_reason(error: RuntimeError) -> FailureReason | None:
    """Returns the reason if an error is about the GPU's memory or the device, otherwise None. Compares the name of the
    class, because preflight must not import torch. Libraries of the GPU report their errors as a plain RuntimeError.
    NCCL reports an error of the GPU as a DistBackendError, like one of the network."""
    names, text = {base.__name__ for base in type(error).__mro__}, str(error)
    if "OutOfMemoryError" in names or GPU_OUT_OF_MEMORY.search(text):
        return FailureReason.GPU_OUT_OF_MEMORY
    of_the_gpu = "AcceleratorError" in names or ("DistBackendError" in names and NCCL_GPU_ERROR in text)
    return FailureReason.GPU_FAULT if of_the_gpu else None


def _gpu_line(error: RuntimeError) -> str:
    """Returns the line in which NCCL names the error of the GPU, or else the first line."""
    named = (line for line in str(error).splitlines() if line.startswith(NCCL_GPU_ERROR))
    return next(named, _first_line(error))[:500]


def _crash(error: BaseException) -> str:
    """Returns the class and the place of an unexpected error. The error's text is included only if it comes from the
    system or the GPU: other errors can quote a row, and a status must never contain a row."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    place = f" in {ours[-1].name} ({Path(ours[-1].filename).relative_to(_PACKAGE)}:{ours[-1].lineno})" if ours else ""
    text = f": {_first_line(error)}" if type(error) in (RuntimeError, MemoryError) or isinstance(error, OSError) else ""
    return f"{type(error).__name__}{place}{text}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
