"""Which failure an exception stands for, and what may be said of it."""

import errno
import json

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer.pod.failure import StopRequested, TrainerFailure, failure_of


def test_a_typed_failure_is_itself() -> None:
    failure = TrainerFailure(FailureReason.LOSS_DIVERGED, "Loss is NaN.", step=7)
    assert failure_of(failure) is failure


def test_a_gpu_out_of_memory_and_a_full_disk_have_their_own_reasons() -> None:
    import torch

    assert failure_of(torch.OutOfMemoryError("CUDA out of memory. Tried")).reason is FailureReason.GPU_OUT_OF_MEMORY
    full = failure_of(OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    assert full.reason is FailureReason.DISK_FULL
    assert "/scratch/x" in full.message


@pytest.mark.parametrize(
    ("last", "reason", "said"),
    [
        ("Cuda failure 2 'out of memory'", FailureReason.GPU_OUT_OF_MEMORY, "Cuda failure 2 'out of memory'"),
        ("Cuda failure 700 'an illegal memory access'", FailureReason.GPU_FAULT, "Cuda failure 700 'an illegal"),
        ("socketProgress: Connection closed by remote peer", FailureReason.TRAINER_CRASHED, "DistBackendError"),
    ],
)
def test_an_error_of_nccl_is_told_by_its_cause(last: str, reason: FailureReason, said: str) -> None:
    from torch.distributed import DistBackendError

    text = (
        f"NCCL error in: NCCLUtils.hpp:275, unhandled cuda error, NCCL version 2.20.5\nncclX: Y.\nLast error:\n{last}"
    )
    failure = failure_of(DistBackendError(text))
    assert failure.reason is reason
    assert failure.message.startswith(said)


def test_a_stop_is_a_preemption() -> None:
    assert failure_of(StopRequested()).reason is FailureReason.PREEMPTED


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: x"), MemoryError("x"), OSError(errno.EIO, "x")])
def test_the_systems_own_words_are_kept(error: Exception) -> None:
    failure = failure_of(error)
    assert failure.reason is FailureReason.TRAINER_CRASHED
    assert "x" in failure.message.removeprefix(type(error).__name__)


def test_a_row_that_an_error_quotes_never_reaches_the_status() -> None:
    for error in (KeyError("a tenant's row"), ValueError("a tenant's row"), json.JSONDecodeError("m", "row", 0)):
        assert failure_of(error).message == type(error).__name__


def test_a_crash_is_named_with_its_place_in_the_trainer() -> None:
    from finetune_trainer.preflight.split import hold_out

    with pytest.raises(TypeError) as caught:
        hold_out([1, 2], None, 0)  # type: ignore[list-item]
    assert failure_of(caught.value).message.startswith("TypeError in ")
    assert "(preflight/split.py:" in failure_of(caught.value).message


def test_the_status_has_the_remedy_unless_the_pod_received_sigterm() -> None:
    wrong = TrainerFailure(FailureReason.LOSS_DIVERGED, "Loss is NaN at step 7.")

    assert wrong.for_the_status == f"Loss is NaN at step 7. {FAILURES[FailureReason.LOSS_DIVERGED].remedy}"
    assert "Create the job again" not in failure_of(StopRequested()).for_the_status  # a suspended Job goes on
