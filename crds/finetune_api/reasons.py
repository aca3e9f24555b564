"""All failure reasons of a job in one table: exit code of the trainer, who has to act, the remedy, and the retry."""

from dataclasses import dataclass
from enum import StrEnum


class Actor(StrEnum):
    """Who has to act on a failure."""

    TENANT = "Tenant"
    PLATFORM = "Platform"


class Retry(StrEnum):
    """Whether the operator tries again after a failure, and how."""

    NEVER = "Never"
    """A retry fails in the same way. Somebody has to change something first."""
    ONCE = "Once"
    """One retry, counted in spec.runPolicy.maxRetries. A second failure for the same reason ends the job."""
    BACKOFF = "Backoff"
    """Retries with growing pauses, counted in spec.runPolicy.maxRetries."""
    OTHER_NODE = "OtherNode"
    """Retries on another node, counted in spec.runPolicy.maxRetries."""
    INTERRUPTION = "Interruption"
    """The cluster or a person stopped the pod. Counted apart, in spec.runPolicy.maxInterruptions."""


class FailureReason(StrEnum):
    """Reason of the Failed condition and of a failed attempt."""

    SPEC_INVALID = "SpecInvalid"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_NOT_FOUND = "DatasetNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    OUTPUT_OCCUPIED = "OutputOccupied"
    DOES_NOT_FIT = "DoesNotFit"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    REGISTRY_UNAVAILABLE = "RegistryUnavailable"
    POD_START_FAILED = "PodStartFailed"
    LOSS_DIVERGED = "LossDiverged"
    EVALUATION_GATE_FAILED = "EvaluationGateFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    GPU_FAULT = "GPUFault"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    PREEMPTED = "Preempted"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    NODE_FAULT = "NodeFault"
    KILLED = "Killed"
    TRAINING_STALLED = "TrainingStalled"
    PEER_LOST = "PeerLost"
    STATUS_NOT_WRITABLE = "StatusNotWritable"
    TRAINER_CRASHED = "TrainerCrashed"


@dataclass(frozen=True)
class Failure:
    """Exit code, actor, remedy and retry of one failure reason."""

    exit_code: int
    """Exit code of the trainer for this reason; 0 if only the cluster can detect the failure. The codes differ from
    those of a shell (126 to 165) and of Python (1, 2)."""
    actor: Actor
    """Who has to act."""
    remedy: str
    """What to do about the failure. The text follows the finding, unless the finding has its own remedy. For a failure
    that is retried, it is shown when the retries are used up."""
    retry: Retry = Retry.NEVER
    """Whether the operator tries again."""
    change: str = ""
    """What a retry changes; "" if it only tries again."""


FAILURES: dict[FailureReason, Failure] = {
    FailureReason.SPEC_INVALID: Failure(20, Actor.TENANT, "Correct the field and create the job again."),
    FailureReason.DATASET_INVALID: Failure(21, Actor.TENANT, "Correct the rows and create the job again."),
    FailureReason.DATASET_NOT_FOUND: Failure(
        22, Actor.TENANT, "Correct the uri under spec.dataset, or upload the files; then create the job again."
    ),
    FailureReason.MODEL_NOT_FOUND: Failure(
        23, Actor.TENANT, "Correct spec.model.uri, or upload the model to that folder; then create the job again."
    ),
    FailureReason.MODEL_ACCESS_DENIED: Failure(
        37,
        Actor.TENANT,
        "Set spec.model.tokenSecretRef to a Secret with the token of an account that may read the model on the hub.",
    ),
    FailureReason.MODEL_UNSUPPORTED: Failure(
        24,
        Actor.TENANT,
        "Set spec.model.uri to a causal language model in the layout of Transformers, with weights as .safetensors.",
    ),
    FailureReason.STORAGE_ACCESS_DENIED: Failure(
        25,
        Actor.TENANT,
        "Check that the keys in the storage's Secret, or the pod's cloud role, are valid and have read and write "
        "permission.",
    ),
    FailureReason.STORAGE_UNAVAILABLE: Failure(
        26,
        Actor.PLATFORM,
        "Check that the storage works, and its endpoint in the FineTuneProfile.",
        Retry.BACKOFF,
    ),
    FailureReason.OUTPUT_NOT_WRITABLE: Failure(
        27, Actor.TENANT, "Set spec.output.uri to a prefix that the storage's keys can write to."
    ),
    FailureReason.OUTPUT_OCCUPIED: Failure(
        28,
        Actor.TENANT,
        "Set spec.output.uri to another prefix; or wait until no job writes to this one, and delete its files.",
    ),
    FailureReason.DOES_NOT_FIT: Failure(
        35, Actor.TENANT, "Change that setting and create the job again, or use a FineTuneProfile with a larger GPU."
    ),
    FailureReason.IMAGE_PULL_FAILED: Failure(
        0, Actor.PLATFORM, "Correct spec.trainer.image in the FineTuneProfile, then create the job again."
    ),
    FailureReason.REGISTRY_UNAVAILABLE: Failure(
        0,
        Actor.PLATFORM,
        "Check that the registry of the image works, and that the nodes reach it.",
        Retry.BACKOFF,
    ),
    FailureReason.POD_START_FAILED: Failure(
        0,
        Actor.PLATFORM,
        "Correct the cause that this message names: on the node, in the namespace, or in what was added to the pod. "
        "Then create the job again.",
    ),
    FailureReason.LOSS_DIVERGED: Failure(
        29, Actor.TENANT, "Lower spec.training.learningRate, or check the training rows of that step."
    ),
    FailureReason.EVALUATION_GATE_FAILED: Failure(
        36,
        Actor.TENANT,
        "The results are stored at spec.output.uri and marked as not passed; report.html shows which bounds were "
        "missed. Improve the rows or the training settings, or change the gate, in a new job with another "
        "spec.output.uri.",
    ),
    FailureReason.DEADLINE_EXCEEDED: Failure(
        0,
        Actor.TENANT,
        "Raise spec.runPolicy.activeDeadlineSeconds, or train for fewer steps, in a new job.",
    ),
    FailureReason.GPU_OUT_OF_MEMORY: Failure(
        30,
        Actor.TENANT,
        "Lower spec.training.maxSequenceLength, set spec.method.type to QLoRA, or use a FineTuneProfile with a larger "
        "GPU.",
        Retry.ONCE,
        "The micro-batch is halved. The optimizer steps stay the same.",
    ),
    FailureReason.GPU_FAULT: Failure(
        31,
        Actor.PLATFORM,
        "Check the GPU and the driver of the node. To try a job without a GPU, set spec.trainer.allowCPU to true in "
        "the FineTuneProfile.",
        Retry.OTHER_NODE,
        "The pod runs on another node.",
    ),
    FailureReason.HOST_OUT_OF_MEMORY: Failure(0, Actor.TENANT, "Raise spec.compute.memory in a new job.", Retry.ONCE),
    FailureReason.DISK_FULL: Failure(
        32,
        Actor.PLATFORM,
        "Free disk space on the node. If the pod's volume scratch was full, raise spec.pods.scratchSizeLimit of the "
        "FineTuneProfile. Or use a smaller model or data set.",
        Retry.ONCE,
    ),
    FailureReason.PREEMPTED: Failure(
        33,
        Actor.PLATFORM,
        "Find out what stops the pods, for example pods of higher priority, the end of spot nodes, or a person who "
        "deletes them. If that is normal here, set a higher spec.runPolicy.maxInterruptions in a new job.",
        Retry.INTERRUPTION,
    ),
    FailureReason.EVICTED: Failure(
        0,
        Actor.PLATFORM,
        "Find out what evicts or deletes the pods, for example a node that is drained or full. If that is normal here, "
        "set a higher spec.runPolicy.maxInterruptions in a new job.",
        Retry.INTERRUPTION,
    ),
    FailureReason.NODE_LOST: Failure(
        0, Actor.PLATFORM, "Check the nodes that status.attempts names, and their network.", Retry.INTERRUPTION
    ),
    FailureReason.NODE_FAULT: Failure(
        0,
        Actor.PLATFORM,
        "Check the kubelet, the container runtime and the device plugin of the nodes that status.attempts names.",
        Retry.INTERRUPTION,
        "A node on which this happens twice in a row is avoided.",
    ),
    FailureReason.KILLED: Failure(
        0,
        Actor.PLATFORM,
        "Find the process that killed the trainer in the node's kernel log and events. If the node ran out of memory, "
        "raise spec.compute.memory in a new job.",
        Retry.BACKOFF,
    ),
    FailureReason.TRAINING_STALLED: Failure(
        14,  # the number of SIGALRM, because the trainer's timer cannot end the process with another code
        Actor.PLATFORM,
        "Read the stacks of all threads in the pod's log, and check the node's GPU, driver and network. If the work "
        "was only slow, raise spec.runPolicy.stallTimeoutSeconds in a new job, with spec.resumeFrom if this one has "
        "stored a checkpoint.",
        Retry.BACKOFF,
    ),
    FailureReason.PEER_LOST: Failure(
        38,
        Actor.PLATFORM,
        "Read the end of the pod's log, and check the node's network and the connections between its GPUs.",
        Retry.BACKOFF,
    ),
    FailureReason.STATUS_NOT_WRITABLE: Failure(
        0,
        Actor.PLATFORM,
        "Bind the ClusterRole finetune-trainer to the pod's ServiceAccount, and make sure that nothing else writes the "
        "status of this job.",
        Retry.BACKOFF,
    ),
    FailureReason.TRAINER_CRASHED: Failure(
        34,
        Actor.PLATFORM,
        "Read the end of the pod's log. The error is in the trainer or in a library that the trainer uses.",
        Retry.BACKOFF,
    ),
}

RETRIED_PREFLIGHTS = {
    FailureReason.REGISTRY_UNAVAILABLE,
    FailureReason.STORAGE_UNAVAILABLE,
    FailureReason.DISK_FULL,
    FailureReason.PREEMPTED,
    FailureReason.EVICTED,
    FailureReason.NODE_LOST,
    FailureReason.NODE_FAULT,
    FailureReason.KILLED,
    FailureReason.TRAINING_STALLED,
    FailureReason.STATUS_NOT_WRITABLE,
}
"""Failures of a preflight that are retried: those of the storage, of the registry and of the node, a preflight that
hangs, and a pod whose ServiceAccount was deleted while it ran. A preflight that crashes or needs too much memory does
the same again, and nobody waits for its checkpoint."""

SUPERSEDED_EXIT_CODE = 40
"""Exit code of a pod that stopped because another attempt now writes the job's status. The job has not failed."""


def reason_of_exit_code(exit_code: int) -> FailureReason:
    """Return the failure reason of an exit code of the trainer; TRAINER_CRASHED for an unknown code."""
    return next(
        (reason for reason, failure in FAILURES.items() if failure.exit_code and failure.exit_code == exit_code),
        FailureReason.TRAINER_CRASHED,
    )


FINDING_LENGTH = 3800
"""Longest finding that is shown. A condition's message has at most 4096 characters, and the remedy must not be cut."""

AGAIN = "Then create the job again."
"""Ends a finding that contains its own remedy. `sentence` then adds no other remedy."""


def with_remedy(finding: str, remedy: str) -> str:
    """Return the finding with its own remedy, which replaces the remedy of the reason.

    Both are whole sentences. `remedy` does not say that the job must be created again, because AGAIN says so."""
    return f"{_ended(finding)} {_ended(remedy)} {AGAIN}"


def sentence(reason: FailureReason, finding: str) -> str:
    """Return the message that a tenant reads: the finding, cut at FINDING_LENGTH characters, and a remedy.

    The remedy of the reason follows unless `with_remedy` made the finding."""
    finding = finding.rstrip()
    remedy = FAILURES[reason].remedy
    if len(finding) > FINDING_LENGTH:
        return f"{finding[:FINDING_LENGTH]}... {remedy}"
    return _ended(finding) if AGAIN in finding else f"{_ended(finding)} {remedy}".strip()


def finding_of(reason: FailureReason, message: str) -> str:
    """Return the finding in a message that `sentence` made."""
    return message.removesuffix(FAILURES[reason].remedy).rstrip()


def _ended(text: str) -> str:
    text = text.rstrip()
    return text if not text or text[-1] in ".!?" else f"{text}."
