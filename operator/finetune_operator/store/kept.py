"""The part of each watched object that decisions read. Everything else, first of all managedFields, is dropped.

A memory of 10,000 jobs with their Jobs and Pods must be small, so specs and statuses are kept as compressed JSON and
read only when their job is decided."""

import json
import sys
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_api.conflicts import normal
from finetune_api.status.job import ConditionType, State
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.leftovers import has_own_checkpoint, part, time_to_keep
from finetune_operator.observed.facts.pods import Object, Pod
from finetune_operator.observed.world import Key, Progress

_NEVER_READ = {"preflight", "resolved", "training"}
"""Parts of the status that start no decision. `training` is the progress, which changes every few seconds."""

_READ_OF_ESTIMATES = ("gpuType", "memory", "fits", "seconds")
"""What the choice of a GPU type reads of the predictions of the preflight."""

_NO_PROGRESS = Progress()

ENDED = (State.COMPLETE, State.FAILED)
"""States in which nothing is decided any more."""


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A FineTuneJob."""

    key: Key
    uid: str
    version: int = field(compare=False)
    generation: int
    created: datetime
    deleting: bool
    queue: str | None
    priority_class: str | None
    profile: str
    output: str
    """output.uri in its normal form."""
    written_output: str
    """output.uri as the tenant wrote it. Two spellings of a place can be two places in S3."""
    resume_from: str
    """Name of the earlier job of spec.resumeFrom; "" if there is none."""
    is_validated: bool
    state: str
    """State of the status; "" until the operator has written one."""
    spec: bytes
    """For `unpacked`; empty for a job that has ended, for which nothing is decided."""
    status: bytes
    """For `unpacked`, without the parts that start no decision; empty for a job that has ended and is not stale."""
    ended_at: datetime | None = None
    """When the job ended."""
    ttl: timedelta | None = None
    """How long the children are kept after the end; None if they are kept as long as the job."""
    keep: timedelta | None = None
    """How long the checkpoints are kept after the end; None if there are none to delete."""
    is_stale: bool = False
    """Whether the job has ended, and its spec was changed afterwards. kstatus tools wait until this was seen."""
    has_attempts: bool = False
    """Whether the job has requested a GPU."""
    has_several_nodes: bool = False
    """Whether each attempt has pods on several nodes."""
    authors: tuple[tuple[str, int], ...] = ()
    """Type of each condition that an attempt wrote, and the number of the attempt."""
    has_own_checkpoint: bool = field(default=False, compare=False)
    """Whether a job with spec.resumeFrom has a later checkpoint than the one that it began with."""
    progress: Progress = field(default=_NO_PROGRESS, compare=False)
    """Does not count as a change, so that progress starts no decision."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_settled(self) -> bool:
        """Whether nothing is decided for the job any more."""
        return self.has_ended and self.ttl is None and self.keep is None and not self.is_stale

    @property
    def may_write(self) -> bool:
        """Whether the job can still write to its output: it has passed its preflight and has not ended."""
        return self.is_validated and not self.has_ended and not self.deleting

    def needs_earlier_checkpoints(self, now: datetime) -> bool:
        """Whether a job with spec.resumeFrom still needs the checkpoints with which it began. So does a failed one that
        has no others: until its own time is over, a person may let another job start from them."""
        is_kept = self.keep is not None and self.ended_at is not None and now < self.ended_at + self.keep
        return not self.has_own_checkpoint and (is_kept or not self.has_ended)

    @classmethod
    def parse(cls, raw: Object) -> "KeptJob":
        metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
        ended = status.get("state") in ENDED
        stale = ended and status.get("observedGeneration", metadata["generation"]) != metadata["generation"]
        ttl = part(spec, "runPolicy").get("ttlSecondsAfterFinished")
        uri = _text_of(part(spec, "output").get("uri"))
        output = normal(uri)
        return cls(
            key=(sys.intern(metadata["namespace"]), metadata["name"]),
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            generation=metadata["generation"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            deleting="deletionTimestamp" in metadata,
            queue=metadata.get("labels", {}).get(names.LABEL_QUEUE),
            priority_class=metadata.get("labels", {}).get(names.LABEL_PRIORITY_CLASS),
            profile=sys.intern(_text_of(spec.get("profileName"))),
            output=output,
            written_output=output if uri == output else uri,  # one string in memory where both are the same
            resume_from=sys.intern(_text_of(part(spec, "resumeFrom").get("name"))),
            is_validated=any(
                condition["type"] == ConditionType.VALIDATED and condition["status"] == "True"
                for condition in status.get("conditions", [])
            ),
            state=sys.intern(status.get("state", "")),
            spec=b"" if ended else _packed(spec),
            status=b"" if ended and not stale else _packed(_read_of(status)),
            ended_at=_ended_at(status) if ended else None,
            ttl=timedelta(seconds=ttl) if ended and ttl is not None else None,
            keep=time_to_keep(spec, status),
            is_stale=stale,
            has_attempts=status.get("counts", {}).get("attempts", 0) > 0,
            has_several_nodes=part(spec, "compute").get("nodes") not in (None, 1),
            has_own_checkpoint="resumeFrom" in spec and has_own_checkpoint(status),
            authors=() if ended else _authors(metadata.get("managedFields", [])),
            progress=Progress.parse(status["training"]) if "training" in status and not ended else _NO_PROGRESS,
        )


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A child Job."""

    uid: str
    version: int = field(compare=False)
    owner: tuple[str, str]
    """Namespace of the Job, and uid of the FineTuneJob. Tenants can name any owner, in their namespace."""
    step: str
    """preflight, train or cleanup."""
    attempt: int
    """0 for the preflight and the cleanup."""
    deleting: bool
    run: Run
    """Without its pod."""

    @classmethod
    def parse(cls, raw: Object) -> "KeptRun | None":
        """Return None for a Job that the operator did not create, for example a copy with the same labels."""
        metadata = raw["metadata"]
        labels, owner = metadata.get("labels", {}), _controller(metadata)
        if owner is None or names.LABEL_STEP not in labels:
            return None
        return cls(
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            owner=(sys.intern(metadata["namespace"]), owner),
            step=sys.intern(labels[names.LABEL_STEP]),
            attempt=int(labels.get(names.LABEL_ATTEMPT, 0)),
            deleting="deletionTimestamp" in metadata,
            run=Run.parse(raw),
        )

    @property
    def is_cleaning(self) -> bool:
        """Whether this is a cleanup that can start or hold a pod."""
        over = self.run.succeeded or self.run.failed or self.run.suspended or self.deleting
        return self.step == names.CLEANUP and not over


@dataclass(frozen=True, slots=True)
class KeptPod:
    """A Pod of a child Job."""

    uid: str
    version: int = field(compare=False)
    job: str
    """uid of the Job."""
    owner: tuple[str, str]
    """Namespace of the pod, and uid of the FineTuneJob from its label. Tenants can set labels, in their namespace."""
    attempt: int
    """0 for a pod of the preflight."""
    pod: Pod

    @classmethod
    def parse(cls, raw: Object) -> "KeptPod | None":
        """Return None for a pod that no Job has created."""
        metadata = raw["metadata"]
        labels = metadata.get("labels", {})
        # A Job that is deleted with --cascade=orphan leaves a pod that trains on without an owner.
        job = _controller(metadata) or labels.get(names.LABEL_CONTROLLER)
        if job is None:
            return None
        return cls(
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            job=job,
            owner=(sys.intern(metadata["namespace"]), labels.get(names.LABEL_JOB_UID, "")),
            attempt=int(labels.get(names.LABEL_ATTEMPT, 0)),
            pod=Pod.parse(raw),
        )


@dataclass(frozen=True, slots=True)
class KeptProfile:
    """A FineTuneProfile."""

    name: str
    uid: str
    version: int = field(compare=False)
    spec: str
    """JSON."""

    @classmethod
    def parse(cls, raw: Object) -> "KeptProfile":
        metadata = raw["metadata"]
        return cls(metadata["name"], metadata["uid"], int(metadata["resourceVersion"]), _text(raw["spec"]))


@dataclass(frozen=True, slots=True)
class KeptName:
    """An object of which only the existence counts: the trainer's ServiceAccount or RoleBinding of a namespace."""

    namespace: str
    uid: str
    version: int = field(compare=False)

    @classmethod
    def parse(cls, raw: Object) -> "KeptName | None":
        """Return None for an object that is being deleted or has another name."""
        metadata = raw["metadata"]
        if metadata["name"] != names.TRAINER_SERVICE_ACCOUNT or "deletionTimestamp" in metadata:
            return None
        return cls(metadata["namespace"], metadata["uid"], int(metadata["resourceVersion"]))


def unpacked(part: bytes) -> Object:
    """Return a spec or a status of a KeptJob; an empty object if it was not kept."""
    found: Object = json.loads(zlib.decompress(part)) if part else {}
    return found


def _controller(metadata: Object) -> str | None:
    """Return the uid of the controlling owner."""
    return next((owner["uid"] for owner in metadata.get("ownerReferences", []) if owner.get("controller")), None)


def _ended_at(status: Object) -> datetime | None:
    """Return since when the job is Complete or Failed."""
    ends = [c for c in status.get("conditions", []) if c["type"] in ENDED and c["status"] == "True"]
    return datetime.fromisoformat(ends[0]["lastTransitionTime"]) if ends else None


def _authors(managed: list[Object]) -> tuple[tuple[str, int], ...]:
    """Return which attempt wrote which condition, from the field managers. The clock of a pod can be wrong."""
    found: dict[str, int] = {}
    for entry in managed:
        prefix, _, number = entry.get("manager", "").partition("-")
        if prefix == "attempt" and number.isdecimal():
            conditions = entry.get("fieldsV1", {}).get("f:status", {}).get("f:conditions", {})
            types = [json.loads(key[2:])["type"] for key in conditions if key.startswith("k:")]
            found |= {type: max(int(number), found.get(type, 0)) for type in types}
    return tuple(sorted(found.items()))


def _read_of(status: Object) -> Object:
    """Return the parts of a status that decisions read. The predictions are read until a GPU type is chosen."""
    read = {name: part for name, part in status.items() if name not in _NEVER_READ}
    estimates = status.get("preflight", {}).get("estimate", [])
    if "gpuType" in status or not estimates:
        return read
    slim = [{name: each[name] for name in _READ_OF_ESTIMATES if name in each} for each in estimates]
    return {**read, "preflight": {"estimate": slim}}


def _text_of(value: object) -> str:
    """Return the value if it is a text; else "". A spec that cannot be read is said later, when its job is decided."""
    return value if isinstance(value, str) else ""


def _packed(part: Object) -> bytes:
    """Return the part as compressed JSON. Equal parts have equal bytes. The fastest level costs 10 microseconds."""
    return zlib.compress(_text(part).encode(), 1)


def _text(part: Any) -> str:
    return json.dumps(part, separators=(",", ":"))
