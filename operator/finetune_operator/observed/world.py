"""The observed state of one FineTuneJob, as plain data: the input of `reconcile`."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.bundle import Bundle
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus, Stage, State
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.claims import Claim
from finetune_operator.observed.facts.pods import Object, Pod

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


@dataclass(frozen=True)
class Rival:
    """Another unfinished job that has passed its preflight and writes to the same output or to one that overlaps it."""

    name: str
    """NAMESPACE/NAME."""
    uid: str
    created: datetime
    begun: bool
    """Whether the job has requested a GPU."""
    overlapping: str | None = None
    """Output URI of the other job if it is inside this job's or around it; None if the two are the same place."""


@dataclass(frozen=True)
class EarlierJob:
    """The job that spec.resumeFrom names."""

    uid: str
    output: str
    """Its spec.output.uri."""
    state: str
    """State of its status; "" until the operator has written one."""
    is_cleaned: bool = False
    """Whether its checkpoints are being deleted, or may be at any moment."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training has come, as an attempt's pod wrote it. Its changes cause no decision."""

    attempt: int = 0
    """Attempt that wrote it; 0 if none has."""
    step: int | None = None
    resumed_from_step: int | None = None
    checkpoint_step: int | None = None
    kept_results: int | None = None
    observed: datetime | None = None
    """When it was written, by the clock of the pod."""

    @classmethod
    def parse(cls, training: Object) -> "Progress":
        """From status.training. A pod can write anything there that the schema permits."""
        observed = training.get("observedTime")
        return cls(
            attempt=training.get("attempt", 0),
            step=training.get("step"),
            resumed_from_step=training.get("resumedFromStep"),
            checkpoint_step=training.get("checkpointStep"),
            kept_results=training.get("keptResults"),
            observed=datetime.fromisoformat(observed) if observed else None,
        )


@dataclass(frozen=True)
class World:
    """All input of one decision."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    """Version of the observed job. A status is written only if the job still has this version."""
    generation: int
    created: datetime
    deleting: bool
    queue: str | None
    """Queue of the attempts, from the label of the job."""
    priority_class: str | None
    """Kueue's WorkloadPriorityClass of the job's Jobs, from the label of the job."""
    raw_status: Object
    status: FineTuneJobStatus
    spec: FineTuneJobSpec | None
    """None if this version cannot read the spec; spec_error then contains the cause."""
    spec_error: str | None = None
    profile: FineTuneProfileSpec | None = None
    profile_error: str | None = None
    """Why this version cannot read the existing profile; None if it can."""
    bundle: Bundle | None = None
    """The input of the job's pods, as its ConfigMap has it. Read only before a pod is created, and if a pod lacks it;
    None if it does not exist."""
    bundle_error: str | None = None
    """Why the existing bundle is not used; None if it is. This version cannot read it, or it is foreign."""
    bundle_is_foreign: bool = False
    """Whether the existing bundle is not the one that the operator wrote."""
    bundle_digest: str | None = None
    """sha256 of the text of `bundle`, as hex."""
    service_account_exists: bool = False
    service_account_may_report: bool = True
    """False if the tenant's own ServiceAccount has no permission to write the status of the job."""
    role_binding_exists: bool = False
    claims: dict[str, Claim | None] = field(default_factory=dict)
    """The PersistentVolumeClaims that the job names, by name; None for one that does not exist. Read only before a pod
    is created."""
    earlier_job: EarlierJob | None = None
    """The job that spec.resumeFrom names; None if there is none of this name."""
    preflight: Run | None = None
    preflight_number: int = 1
    """Number of the preflight that exists."""
    attempts: dict[int, Run] = field(default_factory=dict)
    remains: dict[int, tuple[Pod, ...]] = field(default_factory=dict)
    """Pods of attempts whose Job was deleted, by the number of the attempt."""
    progress: Progress = Progress()
    authors: dict[str, int] = field(default_factory=dict)
    """Number of the attempt that wrote each of its conditions, by type, as the API server recorded it."""
    ended_at: datetime | None = None
    """When the job ended, if it has ended."""
    ttl: timedelta | None = None
    """How long the children are kept after the end; None if they are kept."""
    children: tuple[str, ...] = ()
    """Names of the child Jobs of a job that has ended."""
    had_several_nodes: bool = False
    """Whether a job that has ended has trained on several nodes."""
    keep: timedelta | None = None
    """How long the checkpoints are kept after the end; None if there are none to delete."""
    cleanup: Run | None = None
    """The Job that deletes the checkpoints of a job that has ended."""
    trainers: tuple[Pod, ...] = ()
    """The pods of a job that has ended, without those of the cleanup."""
    cleanup_has_turn: bool = False
    """Whether the cleanup may be created: only a few cleanups of all jobs run at the same time, and none while another
    job starts from the checkpoints. It never is without a profile."""
    refused_deletion: str = ""
    """Why the API server refused to delete a Job at the last decision, and what helps; "" if it did not."""
    rivals: tuple[Rival, ...] = ()
    """Searched only until the job requests a GPU."""

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def has_requested_gpu(self) -> bool:
        """Whether an attempt exists or existed."""
        return bool(self.attempts) or bool(self.status.counts and self.status.counts.attempts)

    @property
    def has_pod_on_record(self) -> bool:
        """Whether the status says that a pod was created. It is written after the first pod."""
        status = self.status
        working = status.stage is not None or status.state in (State.VALIDATING, State.QUEUED, State.RUNNING)
        ended = status.attempts or status.preflights or (status.counts and status.counts.attempts)
        return working or bool(ended) or status.is_true(ConditionType.VALIDATED)

    @property
    def preflight_under_way(self) -> int:
        """Number of the preflight after the last one on record, whether its Job exists or is still to be created."""
        return self.status.preflights[-1].number + 1 if self.status.preflights else 1

    @property
    def expects_preflight(self) -> bool:
        """Whether the status says that the Job of the preflight exists, and that it has no result yet."""
        return self.status.stage is Stage.PREFLIGHT and not self.status.is_true(ConditionType.VALIDATED)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, so that nothing more is decided for it."""
        return self.ended_at is not None or self.status.is_over


Spec = TypeVar("Spec", FineTuneJobSpec, FineTuneProfileSpec, Bundle)


def parse_spec(kind: type[Spec], raw: Object, root: str = "spec.") -> tuple[Spec | None, str | None]:
    """Return (spec, error). The error is a sentence that names the first field that this version cannot read.

    Fields of a later version are ignored: an older operator may run beside a newer CRD. `root`: what the names of the
    fields begin with."""
    try:
        return kind.model_validate(raw, extra="ignore"), None
    except ValidationError as error:
        first = error.errors()[0]
        return None, f"{root}{'.'.join(map(str, first['loc']))}: {first['msg']}."
