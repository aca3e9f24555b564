"""The part of a job's status about its attempts: what each one used, how it ended, and how many there were."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel, list_map
from finetune_api.status.fields import ATOMIC, Message, Reason, Text, Time

RECORDED = 10
"""Number of the last attempts that the status keeps."""
RECORDED_PODS = 32
"""Number of the last pods that an attempt keeps: at least twice as many as run at the same time."""

Money = Annotated[str, Field(max_length=32)]
"""An amount of money as a decimal string, in the currency of pricePerHour."""


class Reach(StatusModel):
    """How far attempts came."""

    stage: Reason | None = None
    """The latest part of the work."""
    checkpoint_step: int | None = None
    """Optimizer step of the latest checkpoint of that part."""
    kept_results: int | None = None
    """The largest number of results that a later attempt takes over."""


class Counts(StatusModel):
    """How often training was tried."""

    attempts: int = 0
    """Number of training attempts that were started."""
    preflights: int | None = None
    """Number of preflights that were started, if there were several."""
    retries: int | None = None
    """Number of attempts, and of repeated preflights, that were started because the one before failed. At most
    spec.runPolicy.maxRetries."""
    interruptions: int | None = None
    """Number of attempts, and of preflights, that were interrupted: preempted, evicted, deleted or lost with their
    node."""
    in_vain: int | None = None
    """Number of the last interruptions in a row without progress, as far as they count for spec.runPolicy.maxRetries:
    without attempts that were interrupted before their first step."""
    forgotten: Reach | None = None
    """How far the attempts came that status.attempts no longer lists."""
    reasons: Annotated[dict[str, int], Field(max_length=64)] | None = None
    """Number of attempts that ended without success, by reason."""
    preflight_reasons: Annotated[dict[str, int], Field(max_length=64)] | None = None
    """Number of preflights that ended without success, by reason."""


class AttemptPod(StatusModel):
    """One pod of an attempt."""

    name: Text
    """Name of the pod."""
    node_name: Text | None = None
    """Node on which the pod ran."""
    start_time: Time
    """When the pod was scheduled. It holds its GPU since then."""
    completion_time: Time | None = None
    """When the trainer in the pod ended; for a lost pod, when the operator noticed the loss."""


class Attempt(StatusModel):
    """One training attempt: one Job with one pod on each node. A queue that stops and resumes the Job causes further
    pods."""

    number: int
    """Number of the attempt, counted from 1."""
    name: Text
    """Name of the Job of the attempt."""
    start_time: Time | None = None
    """When the first pod of the attempt was scheduled."""
    completion_time: Time | None = None
    """When the last pod of the attempt ended; for a lost pod, when the operator noticed the loss. If no pod ran, when
    the attempt was given up."""
    reason: Reason | None = None
    """Why the attempt ended: Succeeded, a failure reason, or what stopped it (Suspended, BudgetExceeded,
    CostUnknown)."""
    message: Message | None = None
    """Why the attempt ended, in one sentence."""
    exit_code: int | None = None
    """Exit code of the trainer."""
    pod_name: Text | None = None
    """Name of the last pod; on several nodes, of the pod that decides the state of the attempt, for example of the one
    that failed first."""
    node_name: Text | None = None
    """Node on which this pod ran."""
    pods: Annotated[list[AttemptPod], Field(max_length=RECORDED_PODS), list_map("name")] | None = None
    """The last 32 pods, if the attempt had several."""
    stage: Reason | None = None
    """Part of the work in which the attempt ended: Training, Evaluating or Publishing."""
    resumed_from_step: int | None = None
    """Optimizer step of the checkpoint from which the attempt continued; absent if it began at the first step."""
    last_step: int | None = None
    """Last optimizer step that the attempt completed."""
    checkpoint_step: int | None = None
    """Optimizer step of the last checkpoint that the attempt stored; if it stored none, of the one from which it
    continued."""
    kept_results: int | None = None
    """Number of results that a later attempt takes over, as in status.training, after the last one that the attempt
    stored."""
    progressed: bool | None = None
    """Whether the attempt got further than all attempts before it: a later stage, a later checkpoint, or more
    kept results. Absent if its trainer never ran."""
    avoided_nodes: (
        Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=32), SchemaKeys(ATOMIC)] | None
    ) = None
    """Nodes on which the attempt could not run, because a GPU had failed there, or because they had not started earlier
    attempts."""
    gpus: int | None = None
    """Number of GPUs of each pod; absent if it is one."""
    gpu_seconds: int | None = None
    """Seconds for which the ended pods of the attempt held a GPU, added up over their GPUs."""
    price_per_hour: Money | None = None
    """Price of one GPU when the attempt was started, from the FineTuneProfile. If there was none and the job has a
    limit on its cost, the first price after that."""
    cost: Money | None = None
    """Cost of gpuSeconds at that price, as a decimal string."""
