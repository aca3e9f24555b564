"""Which failure an exception stands for, and what may be said of it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such_whoever_reports_it(number: int, tmp_path: Path) -> None:
    """Weights are written by safetensors, whose errors are no OSError. Here a limit of the process stands for the full
    disk, so that the words of the library are real."""
    save = "save_file({'a': numpy.zeros(100_000)}, sys.argv[1])"
    limited = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    code = f"import numpy, resource, sys; from safetensors.numpy import save_file; {limited}; {save}"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "w")], capture_output=True, text=True)
    said = ended.stderr.splitlines()[-1].partition(": ")[2]
    full = said.replace(f"(os error {errno.EFBIG})", f"(os error {number})")
    assert full != said, said
    for error in (SafetensorError(full), OSError(number, os.strerror(number))):
        failure = failure_of(error)
        assert (failure.reason, failure.message) == (
            FailureReason.DISK_FULL,
            "No disk space is left for the scratch folder.",
        )
    assert failure_of(SafetensorError("HeaderTooLarge")).reason is FailureReason.TRAINER_CRASHED


HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call."
NCCL = "NCCL error in: NCCLUtils.hpp:275, unhandled cuda error, NCCL version 2.20.5\nncclX: Y.\nLast error:\n"
NVML = 'NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'
MEMORY, FAULT, CRASH = FailureReason.GPU_OUT_OF_MEMORY, FailureReason.GPU_FAULT, FailureReason.TRAINER_CRASHED


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.", MEMORY),
        ("OutOfMemoryError", "Allocation on device 0 would exceed allowed memory. (out of memory)", MEMORY),
        ("AcceleratorError", f"CUDA error: out of memory{HINT}", MEMORY),
        ("AcceleratorError", f"HIP error: out of memory{HINT}", MEMORY),
        ("RuntimeError", f"CUDA error: out of memory{HINT}", MEMORY),
        ("RuntimeError", "CUDA driver error: out of memory", MEMORY),
        ("RuntimeError", "CUDA ran out of memory outside PyTorch's allocator. If this workload", MEMORY),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MEMORY),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", MEMORY),
        ("RuntimeError", "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`", MEMORY),
        ("RuntimeError", "cuFFT error: CUFFT_ALLOC_FAILED", MEMORY),
        ("RuntimeError", "Triton Error [CUDA]: out of memory", MEMORY),
        ("RuntimeError", NVML, MEMORY),
        ("DistBackendError", f"{NCCL}Cuda failure 2 'out of memory'", MEMORY),
        ("DistBackendError", f"{NCCL}Cuda failure 700 'an illegal memory access'", FAULT),
        ("AcceleratorError", f"CUDA error: an illegal memory access was encountered{HINT}", FAULT),
        ("AcceleratorError", f"CUDA error: uncorrectable ECC error encountered{HINT}", FAULT),
        ("AcceleratorError", f"CUDA error: too many resources requested for launch{HINT}", FAULT),
        ("DistBackendError", f"{NCCL}socketProgress: Connection closed by remote peer", CRASH),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory", CRASH),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`", CRASH),
        ("RuntimeError", "The log says: out of memory", CRASH),
    ],
)
def test_an_error_of_the_gpu_is_told_by_its_cause(kind: str, text: str, reason: FailureReason) -> None:
    import torch
    from torch.distributed import DistBackendError

    classes = [torch.OutOfMemoryError, torch.AcceleratorError, DistBackendError, RuntimeError]
    error = next(each for each in classes if each.__name__ == kind)(text)
    assert failure_of(error).reason is reason


def test_an_error_of_nccl_names_the_error_of_the_gpu_and_not_the_line_of_nccl() -> None:
    from torch.distributed import DistBackendError

    failure = failure_of(DistBackendError(f"{NCCL}Cuda failure 2 'out of memory'"))
    assert failure.message == "Cuda failure 2 'out of memory'"


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
    from finetune_trainer.preflight.data.split import hold_out

    with pytest.raises(TypeError) as caught:
        hold_out([1, 2], None, 0)  # type: ignore[list-item]
    assert failure_of(caught.value).message.startswith("TypeError in ")
    assert "(preflight/data/split.py:" in failure_of(caught.value).message


def test_the_status_has_the_remedy_unless_the_pod_received_sigterm() -> None:
    wrong = TrainerFailure(FailureReason.LOSS_DIVERGED, "Loss is NaN at step 7.")

    assert wrong.for_the_status == f"Loss is NaN at step 7. {FAILURES[FailureReason.LOSS_DIVERGED].remedy}"
    assert "Create the job again" not in failure_of(StopRequested()).for_the_status  # a suspended Job goes on


def test_a_gpu_without_memory_is_agreed_on_only_if_another_rank_was_told() -> None:
    import torch

    from finetune_trainer.ranks.group import AgreedOutOfMemoryError

    short = "Rank 1 of 2: CUDA out of memory."
    for error, agreed in ((torch.OutOfMemoryError(short), False), (AgreedOutOfMemoryError(short), True)):
        failure = failure_of(error)
        assert (failure.reason, failure.agreed) == (MEMORY, agreed)
