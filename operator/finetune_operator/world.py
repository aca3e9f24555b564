"""What was observed of one FineTuneJob, as plain data: the input of `reconcile`."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.bundle import TerminationMessage
from finetune_api.job import FineTuneJobSpec
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.status import FineTuneJobStatus

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True)
class PodCondition:
    """One condition of a Pod."""

    status: str
    reason: str
    message: str
    since: datetime | None = None
    """When status last changed."""


@dataclass(frozen=True)
class Pod:
    """What matters of a trainer pod."""

    name: str
    created: datetime
    phase: str
    due: datetime | None = None
    """When a pod that is being deleted should be gone: the request and its grace period."""
    reason: str = ""
    message: str = ""
    node_name: str | None = None
    conditions: dict[str, PodCondition] = field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    termination_reason: str = ""
    termination: TerminationMessage | None = None

    @classmethod
    def parse(cls, pod: Object) -> "Pod":
        """From the Pod's JSON; the trainer is its only container."""
        status = pod.get("status", {})
        state: Object = next((c.get("state", {}) for c in status.get("containerStatuses", [])), {})
        waiting, running, ended = state.get("waiting", {}), state.get("running", {}), state.get("terminated", {})
        return cls(
            name=pod["metadata"]["name"],
            created=_time(pod["metadata"]["creationTimestamp"]),
            phase=status.get("phase", "Pending"),
            due=_optional_time(pod["metadata"].get("deletionTimestamp")),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            node_name=pod.get("spec", {}).get("nodeName"),
            conditions={
                c["type"]: PodCondition(
                    c["status"], c.get("reason", ""), c.get("message", ""), _optional_time(c.get("lastTransitionTime"))
                )
                for c in status.get("conditions", [])
            },
            started=_optional_time(running.get("startedAt") or ended.get("startedAt")),
            finished=_optional_time(ended.get("finishedAt")),
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            exit_code=ended.get("exitCode"),
            termination_reason=ended.get("reason", ""),
            termination=_termination(ended.get("message", "")),
        )


@dataclass(frozen=True)
class Run:
    """One child Job with its Pod, if it has one yet."""

    name: str
    created: datetime
    succeeded: bool = False
    failed: bool = False
    pod: Pod | None = None
    refusal: str = ""
    """Why the API server does not take its pod, as the Job controller says: a quota, a LimitRange, a policy."""

    @property
    def is_live(self) -> bool:
        """Whether its Job can still start or hold a pod."""
        return not (
            self.succeeded or self.failed or (self.pod is not None and self.pod.phase in ("Succeeded", "Failed"))
        )

    @classmethod
    def parse(cls, job: Object, pods: list[Pod]) -> "Run":
        """From the Job's JSON; of several pods (one deleted, one new) the newest counts."""
        true = {c["type"] for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        return cls(
            name=job["metadata"]["name"],
            created=_time(job["metadata"]["creationTimestamp"]),
            succeeded="Complete" in true,
            failed="Failed" in true,
            pod=max(pods, key=lambda pod: pod.created, default=None),
        )


@dataclass(frozen=True)
class Rival:
    """Another job that is not over, writes to the same place, and has shown in its preflight that it may."""

    name: str
    """NAMESPACE/NAME."""
    uid: str
    created: datetime
    begun: bool
    """Whether it has asked for a GPU."""

    @classmethod
    def parse(cls, job: Object, begun: bool) -> "Rival":
        """From the FineTuneJob's JSON."""
        metadata = job["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        return cls(name, metadata["uid"], _time(metadata["creationTimestamp"]), begun)


@dataclass(frozen=True)
class World:
    """Everything one decision is taken from."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    """What the API server counts changes by: what is decided from this world is written only if it still stands."""
    generation: int
    created: datetime
    deleting: bool
    labels: dict[str, str]
    raw_status: Object
    status: FineTuneJobStatus
    spec: FineTuneJobSpec | None
    """None where this version cannot read it; then spec_error says why."""
    spec_error: str | None = None
    profile: FineTuneProfileSpec | None = None
    profile_error: str | None = None
    """Why this version cannot read the profile that is there, where it cannot."""
    service_account_exists: bool = False
    service_account_may_report: bool = True
    """False where the tenant's own ServiceAccount may not write the job's status."""
    role_binding_exists: bool = False
    bundle_exists: bool = False
    preflight: Run | None = None
    attempts: dict[int, Run] = field(default_factory=dict)
    rivals: tuple[Rival, ...] = ()
    """Looked for until the job asks for a GPU."""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended: nothing is decided for it any more."""
        return self.status.is_over


Spec = TypeVar("Spec", FineTuneJobSpec, FineTuneProfileSpec)


def parse_spec(kind: type[Spec], raw: Object) -> tuple[Spec | None, str | None]:
    """The spec, or a sentence naming the first field that this version cannot read."""
    try:
        return kind.model_validate(raw), None
    except ValidationError as error:
        first = error.errors()[0]
        return None, f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}."


def _termination(text: str) -> TerminationMessage | None:
    """What the trainer left; None where it left nothing of ours (then the kubelet put the log's end there)."""
    try:
        return TerminationMessage.model_validate(json.loads(text))
    except ValueError:
        return None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else _time(text)
