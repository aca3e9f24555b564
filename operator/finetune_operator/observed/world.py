"""What was observed of one FineTuneJob, as plain data: the input of `reconcile`."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.observed.pods import Object, Pod

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


@dataclass(frozen=True)
class Run:
    """One child Job with its Pod, if it has one yet."""

    name: str
    created: datetime
    succeeded: bool = False
    failed: bool = False
    failure: str = ""
    """Why its Job has failed, where that is not its pod's failure: a deadline that somebody set on the Job."""
    suspended: bool = False
    suspended_by: str = ""
    """Field manager that suspended its Job; "" where a webhook did so as the Job was created."""
    queue: str | None = None
    """Queue its Job stands in, by its label."""
    begun: datetime | None = None
    """When its Job was started, or last resumed."""
    pod: Pod | None = None
    refusal: str = ""
    """Why the API server does not take its pod, as the Job controller says: a quota, a LimitRange, a policy."""

    @property
    def is_live(self) -> bool:
        """Whether its Job can still start or hold a pod."""
        if self.succeeded or self.failed:
            return False
        return self.pod is None or self.pod.is_leaving or not self.pod.is_over

    @classmethod
    def parse(cls, job: Object, pods: list[Pod]) -> "Run":
        """From the Job's JSON. A Job that was suspended and resumed has had several pods: of those that are not being
        deleted the newest counts, else the newest of all."""
        metadata, status = job["metadata"], job.get("status", {})
        true = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
        return cls(
            name=metadata["name"],
            created=_time(metadata["creationTimestamp"]),
            succeeded="Complete" in true,
            failed="Failed" in true,
            failure=_own_failure(true.get("Failed", {})),
            suspended=bool(job.get("spec", {}).get("suspend")),
            suspended_by=_suspended_by(metadata.get("managedFields", [])),
            queue=metadata.get("labels", {}).get(names.LABEL_QUEUE),
            begun=_optional_time(status.get("startTime")),
            pod=max(pods, key=lambda pod: (not pod.is_leaving, pod.created), default=None),
        )


@dataclass(frozen=True)
class Rival:
    """Another job that is not over, writes to the same place or to one that overlaps it, and has shown in its preflight
    that it may."""

    name: str
    """NAMESPACE/NAME."""
    uid: str
    created: datetime
    begun: bool
    """Whether it has asked for a GPU."""
    overlapping: str | None = None
    """Its output.uri, where this is inside the other job's or around it; None where the two are one place."""

    @classmethod
    def parse(cls, job: Object, begun: bool, overlapping: str | None = None) -> "Rival":
        """From the FineTuneJob's JSON."""
        metadata = job["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        return cls(name, metadata["uid"], _time(metadata["creationTimestamp"]), begun, overlapping)


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


def _own_failure(condition: Object) -> str:
    """Reason and message of a Job's condition Failed; "" where it only counts its failed pod."""
    if condition.get("reason", "BackoffLimitExceeded") == "BackoffLimitExceeded":
        return ""
    return f"{condition['reason']}: {condition.get('message', '')}"


def _suspended_by(managed: list[Object]) -> str:
    """Who manages spec.suspend, where that is not who made the Job and so manages spec.backoffLimit too: a webhook's
    change counts as the maker's."""
    own = [(entry.get("manager", ""), entry.get("fieldsV1", {}).get("f:spec", {})) for entry in managed]
    return next((who for who, spec in own if "f:suspend" in spec and "f:backoffLimit" not in spec), "")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else _time(text)
