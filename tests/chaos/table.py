"""Every fault: how it is injected, in which phases, and what must happen then."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from finetune_api.reasons import FailureReason
from tests.chaos.harms import of_checkpoints as checkpoints
from tests.chaos.harms import of_cluster as cluster
from tests.chaos.harms import of_pods as pods
from tests.chaos.harms import of_storage as storage
from tests.chaos.phases import Phase
from tests.chaos.scene import LATE_PROFILE, Lane
from tests.integration.faults import Harm, Trouble
from tests.integration.jobs import Job

ALL = tuple(Phase)
IN_THE_ATTEMPT = tuple(phase for phase in Phase if phase is not Phase.PREFLIGHT)
STEPPING = (Phase.TRAIN,)
WITH_CHECKPOINTS = (Phase.TRAIN,)
R = FailureReason


@dataclass(frozen=True)
class Fault:
    """One fault. `inject` may return another job, which then takes the place of the first one.

    `reasons`: what an attempt that the fault ended may give as its reason. Empty: it ends no attempt.
    `completes`: whether the job must end Complete, otherwise Failed with one of `reasons`.
    `most_seconds_lost`: of work that may be repeated. `same_weights`: whether the weights must be those of a job
    without a fault, bit for bit. `shared`: whether it hits all jobs at once. `on_second_node`: whether the pods run
    there. `lasts`: whether it acts from the begin of `inject` on; otherwise from its end. `ends_pod`: whether it ends
    the pod that it hits. `too_late`: the words of Ready if it came too late. `spec`: fields of the job."""

    name: str
    told: str
    inject: Callable[[Lane, Job], Job | None]
    phases: Sequence[Phase]
    reasons: frozenset[FailureReason] = frozenset()
    completes: bool = True
    most_seconds_lost: float = 60.0
    same_weights: bool = True
    shared: bool = False
    on_second_node: bool = False
    lasts: bool = False
    ends_pod: bool = False
    too_late: str | None = None
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A try to make: number `seed` of its fault, counted from 0, in this phase."""

    fault: Fault
    phase: Phase
    seed: int


def _reasons(*reasons: FailureReason) -> frozenset[FailureReason]:
    return frozenset(reasons)


def _word(word: str) -> Callable[[Lane, Job], None]:
    return partial(pods.order, word=word)


S3_REASONS = _reasons(R.STORAGE_UNAVAILABLE)
"""An attempt may outlive trouble of S3, or be tried again because of it."""
FAULTS: tuple[Fault, ...] = (
    Fault(
        "trainer-sigkill",
        "The trainer's process is killed (SIGKILL).",
        partial(pods.kill, number=signal.SIGKILL),
        ALL,
        _reasons(R.KILLED),
        ends_pod=True,
    ),
    Fault(
        "trainer-sigterm",
        "The trainer's process is asked to stop (SIGTERM).",
        partial(pods.kill, number=signal.SIGTERM),
        ALL,
        _reasons(R.PREEMPTED),
        most_seconds_lost=0.0,
        ends_pod=True,
    ),
    Fault(
        "out-of-memory",
        "The kernel kills the trainer at the memory limit of its cgroup.",
        pods.out_of_memory,
        IN_THE_ATTEMPT,
        _reasons(R.HOST_OUT_OF_MEMORY),
        ends_pod=True,
    ),
    Fault(
        "preflight-out-of-memory",
        "The kernel kills the preflight at the memory limit of its cgroup.",
        pods.preflight_out_of_memory,
        (Phase.PREFLIGHT,),
        _reasons(R.HOST_OUT_OF_MEMORY),
        completes=False,  # it does the same again, and nobody waits for its checkpoint
        ends_pod=True,
    ),
    Fault(
        "disk-full",
        "The pod's emptyDir exceeds its size limit.",
        pods.fill_the_disk,
        STEPPING,  # the kubelet looks every ten seconds, and other phases are shorter
        _reasons(R.DISK_FULL),
        ends_pod=True,
    ),
    Fault(
        "loss-not-a-number",
        "The loss of a step is not a number (stand-in).",
        _word("loss-not-a-number"),
        STEPPING,
        _reasons(R.LOSS_DIVERGED),
        completes=False,
        ends_pod=True,
    ),
    Fault(
        "gpu-out-of-memory",
        "The GPU runs out of memory (stand-in).",
        _word("gpu-out-of-memory"),
        STEPPING,
        _reasons(R.GPU_OUT_OF_MEMORY),
        same_weights=False,  # the sums of half a micro-batch are rounded otherwise
        ends_pod=True,
    ),
    Fault(
        "hang",
        "A step hangs (stand-in).",
        _word("hang"),
        STEPPING,
        _reasons(R.TRAINING_STALLED),
        spec={"runPolicy": {"stallTimeoutSeconds": 20}},
        ends_pod=True,
    ),
    Fault("gpu-fault", "The GPU fails (stand-in).", _word("gpu-fault"), STEPPING, _reasons(R.GPU_FAULT), ends_pod=True),
    Fault("s3-away", "S3 refuses connections for 60 s.", storage.s3_away, ALL, S3_REASONS, lasts=True),
    Fault(
        "s3-503",
        "S3 answers every request with 503 for 60 s.",
        storage.s3_troubled(Trouble(Harm.REFUSED, code=503)),
        ALL,
        S3_REASONS,
        lasts=True,
    ),
    Fault(
        "s3-429",
        "S3 answers every request with 429 for 60 s.",
        storage.s3_troubled(Trouble(Harm.REFUSED, code=429)),
        ALL,
        S3_REASONS,
        lasts=True,
    ),
    Fault(
        "s3-cut",
        "S3's connections are cut at random for 60 s: a quarter of the answers, and an eighth of the requests.",
        storage.s3_troubled(
            Trouble(Harm.CUT_WITHIN_ANSWER, share=0.25, matches=lambda asked: asked.method == "GET"),
            Trouble(Harm.CUT_WITHIN_REQUEST, share=0.125, matches=lambda asked: asked.method == "PUT"),
        ),
        ALL,
        S3_REASONS,
        lasts=True,
    ),
    Fault(
        "s3-slow",
        "S3 takes 3 s more for every request, for 60 s.",
        storage.s3_troubled(Trouble(Harm.SLOW, seconds=3)),
        ALL,
        lasts=True,
    ),
    Fault(
        "s3-denies-last-upload",
        "S3 refuses the upload of manifest.json with 403.",
        storage.deny_last_upload,
        (Phase.TRAIN, Phase.TUNED),
        _reasons(R.STORAGE_ACCESS_DENIED, R.OUTPUT_NOT_WRITABLE),
        completes=False,
        ends_pod=True,
    ),
    Fault(
        "keys-rotated",
        "The keys of S3 are rotated: the old ones are refused.",
        storage.rotate_keys,
        STEPPING,  # the kubelet takes a minute or two, and other phases are shorter
        lasts=True,
    ),
    Fault(
        "checkpoint-truncated",
        "The newest checkpoint is cut in half, and the trainer is killed.",
        checkpoints.truncate_newest,
        WITH_CHECKPOINTS,
        _reasons(R.KILLED),
        ends_pod=True,
    ),
    Fault(
        "checkpoint-file-missing",
        "A file of the newest checkpoint is deleted, and the trainer is killed.",
        checkpoints.delete_of_newest,
        WITH_CHECKPOINTS,
        _reasons(R.KILLED),
        ends_pod=True,
    ),
    Fault(
        "operator-killed",
        "The operator is killed (SIGKILL) five times, at random moments.",
        cluster.kill_operator,
        ALL,
        shared=True,
    ),
    Fault("two-operators", "Two operators run at once.", cluster.two_operators, ALL, shared=True),
    Fault("api-restarted", "The API server is killed and started again.", cluster.restart_api_server, ALL, shared=True),
    Fault("etcd-paused", "etcd stands still for 30 s.", cluster.pause_etcd, ALL, shared=True),
    Fault(
        "api-refuses",
        "The API server refuses three tenths of the requests with 409, 429 and 500, for 60 s.",
        cluster.api_troubled(409, 429, 500),
        ALL,
        shared=True,
    ),
    Fault("watches-cut", "Every watch is cut every 5 s, for 60 s.", cluster.cut_watches, ALL, shared=True),
    Fault("pod-deleted", "The pod is deleted.", pods.delete_pod, ALL, _reasons(R.PREEMPTED, R.EVICTED), ends_pod=True),
    Fault(
        "child-job-deleted",
        "The batch Job is deleted.",
        pods.delete_child_job,
        ALL,
        _reasons(R.PREEMPTED, R.EVICTED),
        ends_pod=True,
    ),
    Fault(
        "groundwork-deleted",
        "The ConfigMap, the ServiceAccount and the RoleBinding are deleted.",
        pods.delete_groundwork,
        ALL,
        _reasons(R.PREEMPTED, R.STATUS_NOT_WRITABLE),
    ),
    Fault(
        "made-again",
        "The FineTuneJob is deleted and made again under its name.",
        pods.make_again,
        ALL,
        too_late="already contains the results of",  # the first one had published before its pod stopped
    ),
    Fault(
        "clock-an-hour-off",
        "The clock of the pods is an hour ahead (stand-in).",
        lambda lane, job: None,
        (Phase.PREFLIGHT,),  # it is wrong from the start, in every phase
        spec={"profileName": LATE_PROFILE},
    ),
    Fault(
        "profile-changed",
        "The profile's image is changed to one that does not exist.",
        pods.change_profile,
        IN_THE_ATTEMPT,  # the first training pod takes the image that the profile has when it starts
    ),
    Fault(
        "node-lost",
        "The node of the pod loses its power, and comes back later.",
        pods.lose_the_node,
        ALL,
        _reasons(R.NODE_LOST),
        shared=True,
        on_second_node=True,
        ends_pod=True,
    ),
    Fault(
        "node-parted",
        "The node of the pod is off the network while its pod goes on, and comes back later.",
        pods.part_the_node,
        ALL,
        _reasons(R.NODE_LOST),
        shared=True,
        on_second_node=True,
        ends_pod=True,
    ),
)
SHORT = (
    "trainer-sigkill",
    "trainer-sigterm",
    "out-of-memory",
    "pod-deleted",
    "child-job-deleted",
    "operator-killed",
    "api-restarted",
    "s3-503",
)
"""Faults of the short form, once each in `make test`."""
