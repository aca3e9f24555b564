"""Every way a job can fail, in one table: the word, the trainer's exit code, who has to act, and the remedy."""

from dataclasses import dataclass
from enum import StrEnum


class Actor(StrEnum):
    """Who has to act on a failure."""

    TENANT = "Tenant"
    PLATFORM = "Platform"


class FailureReason(StrEnum):
    """Reason of the Failed condition and of a failed attempt."""

    SPEC_INVALID = "SpecInvalid"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_NOT_FOUND = "DatasetNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    OUTPUT_OCCUPIED = "OutputOccupied"
    DOES_NOT_FIT = "DoesNotFit"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_START_FAILED = "PodStartFailed"
    LOSS_DIVERGED = "LossDiverged"
    EVALUATION_GATE_FAILED = "EvaluationGateFailed"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    GPU_FAULT = "GPUFault"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    PREEMPTED = "Preempted"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    KILLED = "Killed"
    STATUS_NOT_WRITABLE = "StatusNotWritable"
    TRAINER_CRASHED = "TrainerCrashed"


@dataclass(frozen=True)
class Failure:
    """What a failure reason means."""

    exit_code: int
    """Exit code the trainer ends with for it; 0 where only the cluster can tell. Codes stay clear of those a shell
    (126 to 165) or Python (1, 2) give."""
    actor: Actor
    """Who has to act."""
    remedy: str
    """What to do about it, a sentence that follows the finding."""


FAILURES: dict[FailureReason, Failure] = {
    FailureReason.SPEC_INVALID: Failure(20, Actor.TENANT, "Correct the field and create the job again."),
    FailureReason.DATASET_INVALID: Failure(21, Actor.TENANT, "Correct the rows and create the job again."),
    FailureReason.DATASET_NOT_FOUND: Failure(22, Actor.TENANT, "Correct the uri under dataset, or upload the files."),
    FailureReason.MODEL_NOT_FOUND: Failure(23, Actor.TENANT, "Correct model.uri, or upload the model there."),
    FailureReason.MODEL_UNSUPPORTED: Failure(
        24, Actor.TENANT, "Choose a causal language model in Transformers' layout with .safetensors weights."
    ),
    FailureReason.STORAGE_ACCESS_DENIED: Failure(
        25, Actor.TENANT, "Check the keys in the storage's Secret, or the cloud role, and what it may read and write."
    ),
    FailureReason.STORAGE_UNAVAILABLE: Failure(
        26, Actor.PLATFORM, "Check the storage's endpoint, then create the job again."
    ),
    FailureReason.OUTPUT_NOT_WRITABLE: Failure(27, Actor.TENANT, "Choose an output.uri these keys may write to."),
    FailureReason.OUTPUT_OCCUPIED: Failure(
        28, Actor.TENANT, "Choose another output.uri; or, once no job writes there, remove what lies there."
    ),
    FailureReason.DOES_NOT_FIT: Failure(
        35, Actor.TENANT, "Change that and create the job again, or use a profile with a larger GPU."
    ),
    FailureReason.IMAGE_PULL_FAILED: Failure(0, Actor.PLATFORM, "Correct trainer.image in the FineTuneProfile."),
    FailureReason.POD_START_FAILED: Failure(
        0,
        Actor.PLATFORM,
        "Correct what it names, on the node, in the namespace or in what was added to the pod; then create the job "
        "again.",
    ),
    FailureReason.LOSS_DIVERGED: Failure(
        29, Actor.TENANT, "Lower training.learningRate, or look at the rows of that step."
    ),
    FailureReason.EVALUATION_GATE_FAILED: Failure(
        36,
        Actor.TENANT,
        "The results are kept at output.uri, marked as not passed: report.html shows what fell short. Improve the rows "
        "or the recipe, or change the gate, in a new job with another output.uri.",
    ),
    FailureReason.GPU_OUT_OF_MEMORY: Failure(
        30, Actor.TENANT, "Lower training.maxSequenceLength, use method.type QLoRA, or choose a GPU with more memory."
    ),
    FailureReason.GPU_FAULT: Failure(
        31,
        Actor.PLATFORM,
        "Check the node's GPU and driver; for trials without one set trainer.allowCPU in the FineTuneProfile.",
    ),
    FailureReason.HOST_OUT_OF_MEMORY: Failure(0, Actor.TENANT, "Raise compute.memory."),
    FailureReason.DISK_FULL: Failure(
        32, Actor.PLATFORM, "Free disk space on the node, or choose a smaller model or data set."
    ),
    FailureReason.PREEMPTED: Failure(33, Actor.PLATFORM, "Create the job again once there is room."),
    FailureReason.EVICTED: Failure(0, Actor.PLATFORM, "Create the job again once the node has room."),
    FailureReason.NODE_LOST: Failure(0, Actor.PLATFORM, "Create the job again; its node went away."),
    FailureReason.KILLED: Failure(
        0,
        Actor.PLATFORM,
        "Look for what killed it in the node's kernel log and events, raise compute.memory where the node ran out of "
        "memory, and create the job again.",
    ),
    FailureReason.STATUS_NOT_WRITABLE: Failure(
        0,
        Actor.PLATFORM,
        "Bind ClusterRole finetune-trainer to the pod's ServiceAccount, let nothing else write this job's status, and "
        "create the job again.",
    ),
    FailureReason.TRAINER_CRASHED: Failure(
        34, Actor.PLATFORM, "Read the end of the pod's log: the fault is in the trainer or in a library that it uses."
    ),
}

SUPERSEDED_EXIT_CODE = 40
"""Exit code of a pod that found another attempt to be the job's writer. It is no failure of the job."""


def reason_of_exit_code(exit_code: int) -> FailureReason:
    """The failure reason an exit code of the trainer stands for; an unknown one is a crash."""
    return next(
        (reason for reason, failure in FAILURES.items() if failure.exit_code and failure.exit_code == exit_code),
        FailureReason.TRAINER_CRASHED,
    )


FINDING_LENGTH = 3800
"""Longest finding that is shown: a condition's message holds 4096 characters, and the remedy must not be cut off."""


def sentence(reason: FailureReason, finding: str) -> str:
    """What a tenant reads: what was found, cut where it is very long, then what to do about it."""
    finding = finding.rstrip()
    shown = finding if len(finding) <= FINDING_LENGTH else f"{finding[:FINDING_LENGTH]}..."
    return f"{shown} {FAILURES[reason].remedy}"
