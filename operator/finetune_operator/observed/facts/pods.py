"""The relevant fields of a trainer pod, from its JSON.

The trainer's container is found by its name, because webhooks can add other containers."""

import json
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from finetune_api import names
from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason, reason_of_exit_code
from finetune_operator.observed.facts import node_clocks

Object = dict[str, Any]
"""A Kubernetes object as JSON."""

_READ = {"PodScheduled", "PodReadyToStartContainers", "DisruptionTarget"}
"""Conditions that decisions read. Others are not kept in memory."""
NEVER_RAN = {"StartError", "ContainerCannotRun"}
"""Termination reasons for a container that was not started. The message contains the runtime's error."""
MOST_GRACE_SECONDS = 7 * 86_400
"""A longer grace period counts as a week. Tenants can write any number of seconds."""


@dataclass(frozen=True, slots=True)
class PodCondition:
    """One condition of a Pod."""

    status: str
    reason: str
    message: str
    since: datetime | None = None
    """When status last changed."""
    said_since: datetime | None = None
    """When message last changed, by the clock of the API server. Read only for a pod that the scheduler has refused."""


@dataclass(frozen=True, slots=True)
class Companion:
    """A container of the pod other than the trainer. The operator creates only the one that fetches the model."""

    name: str
    comes_first: bool = False
    """Whether the trainer waits for this container: an init container, or a native sidecar (restartPolicy Always)."""
    is_sidecar: bool = False
    """Whether this container is a native sidecar."""
    waiting_reason: str = ""
    waiting_message: str = ""
    is_running: bool = False
    is_ready: bool = False
    exit_code: int | None = None
    ended_as: str = ""
    """Reason of its end, for example OOMKilled."""
    runtime_error: str = ""
    """Why the container runtime could not start it."""
    finished: datetime | None = None
    """By the clock of the cluster, as far as the pod shows the difference."""

    @classmethod
    def parse(cls, status: Object, comes_first: bool, is_sidecar: bool) -> "Companion":
        """From one entry of containerStatuses or initContainerStatuses. `finished` is by the clock of the node."""
        state = status.get("state", {})
        waiting, ended = state.get("waiting", {}), state.get("terminated", {})
        return cls(
            name=status["name"],
            comes_first=comes_first,
            is_sidecar=is_sidecar,
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            is_running="running" in state,
            is_ready=bool(status.get("started")),
            exit_code=ended.get("exitCode"),
            ended_as=ended.get("reason", ""),
            runtime_error=ended.get("message", "") if ended.get("reason") in NEVER_RAN else "",
            finished=_time(ended.get("finishedAt")) if comes_first else None,
        )


@dataclass(frozen=True, slots=True)
class PodEvent:
    """The latest Event about a pod."""

    is_warning: bool
    reason: str
    message: str
    step_since: datetime | None = None
    """When the kubelet first reported the newest step with a container: a pull, a creation, a start, or a failure of
    one. The same report, sent again, does not count. By the clock of the API server."""
    pull_error: str = ""
    """Why the last pull failed."""
    warned_since: datetime | None = None
    """Of a warning: since when nothing but warnings was reported. A container that is pulled, created or started ends
    such a time. By the clock of the API server."""


class NodeState(Enum):
    """Whether the node of a pod answers."""

    ANSWERS = "Answers"
    SILENT = "Silent"
    """Its kubelet has not reported for a while."""
    GONE = "Gone"
    """It was deleted, or an administrator has marked it as out of service. Nothing runs there any more."""


@dataclass(frozen=True, slots=True)
class Pod:
    """The relevant fields of a trainer pod. Fields of a container are those of the trainer's container."""

    name: str
    created: datetime
    phase: str
    uid: str = ""
    index: int = 0
    """Its number among the pods of its Job; 0 on one node."""
    trains: bool = True
    """Whether it belongs to a training attempt. Other pods have no GPU."""
    due: datetime | None = None
    """When a pod that is being deleted must be gone: time of the request plus the grace period."""
    grace: timedelta = timedelta(0)
    """Grace period of a pod that is being deleted."""
    node_state: NodeState = NodeState.ANSWERS
    """Read only for a pod that is being deleted and has not ended."""
    reason: str = ""
    message: str = ""
    node_name: str | None = None
    conditions: dict[str, PodCondition] = field(default_factory=dict)
    started: datetime | None = None
    """By the clock of the node, which may be wrong."""
    finished: datetime | None = None
    """By the clock of the cluster, as far as the pod shows the difference."""
    behind: timedelta = timedelta(0)
    """How far the clock of the node is behind that of the cluster at least. Not positive: it is not known to be."""
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    termination_reason: str = ""
    termination_text: str = ""
    """Raw termination message: the trainer's JSON, the container runtime's error, or log lines."""
    termination: TerminationMessage | None = None
    companions: tuple[Companion, ...] = ()
    event: PodEvent | None = None
    """Read only for a pod that starts slowly."""

    @classmethod
    def parse(cls, pod: Object) -> "Pod":
        """From the Pod's JSON."""
        status, metadata = pod.get("status", {}), pod["metadata"]
        own: Object = next((c for c in status.get("containerStatuses", []) if c["name"] == names.CONTAINER), {})
        state = own.get("state", {})
        waiting, running, ended = state.get("waiting", {}), state.get("running", {}), state.get("terminated", {})
        managed = metadata.get("managedFields", [])
        conditions = {c["type"]: _condition(c, managed) for c in status.get("conditions", []) if c["type"] in _READ}
        scheduled, finished = conditions.get("PodScheduled"), _time(ended.get("finishedAt"))
        behind = node_clocks.behind(scheduled.since if scheduled else None, _time(status.get("startTime")))
        written = node_clocks.written(managed)
        correction = node_clocks.correction(behind, finished, written)
        return cls(
            name=metadata["name"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            phase=sys.intern(status.get("phase", "Pending")),
            uid=metadata.get("uid", ""),
            index=int(metadata.get("labels", {}).get(names.LABEL_INDEX, 0)),
            trains=names.LABEL_ATTEMPT in metadata.get("labels", {}),
            due=_time(metadata.get("deletionTimestamp")),
            grace=timedelta(seconds=min(metadata.get("deletionGracePeriodSeconds") or 0, MOST_GRACE_SECONDS)),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            node_name=pod.get("spec", {}).get("nodeName"),
            conditions=_corrected(conditions, correction),
            started=_time(running.get("startedAt") or ended.get("startedAt")),
            finished=finished + correction if finished else None,
            behind=behind,
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            exit_code=ended.get("exitCode"),
            termination_reason=ended.get("reason", ""),
            termination_text=ended.get("message", ""),
            termination=_termination(ended.get("message", ""), ended.get("exitCode")),
            companions=tuple(_by_the_cluster(each, behind, written) for each in _companions(pod)),
        )

    @property
    def is_leaving(self) -> bool:
        """Whether the pod is being deleted."""
        return self.due is not None

    @property
    def is_over(self) -> bool:
        """Whether all containers of the pod have ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def trainer_ended(self) -> bool:
        """Whether the trainer's container has ended, or can no longer start."""
        return self.is_over or self.exit_code is not None

    @property
    def trainer_succeeded(self) -> bool:
        """Whether the trainer's container succeeded. The pod's phase counts only if the container has no exit code."""
        return self.exit_code == 0 if self.exit_code is not None else self.phase == "Succeeded"

    @property
    def held_since(self) -> datetime | None:
        """Return since when the pod has held its GPU; None if it has no node."""
        return self.placed or self.started

    @property
    def may_start_since(self) -> datetime:
        """Return since when nothing has to happen before the trainer starts: the pod has a node, and the containers
        before it that have ended are done."""
        ends = [each.finished for each in self.companions if each.finished is not None and not each.is_sidecar]
        return max([self.placed or self.created, *ends])

    @property
    def lingering(self) -> str:
        """Names of the containers that keep the pod running though the trainer's has ended; "" where none does."""
        if self.is_over or self.exit_code is None:
            return ""
        return ", ".join(companion.name for companion in self.companions if companion.is_running)

    @property
    def placed(self) -> datetime | None:
        """Return when the pod was scheduled; None if it has no node."""
        scheduled = self.conditions.get("PodScheduled")
        return None if scheduled is None or scheduled.status != "True" else scheduled.since or self.created


def _companions(pod: Object) -> tuple[Companion, ...]:
    spec, status = pod.get("spec", {}), pod.get("status", {})
    sidecars = {c["name"] for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always"}
    first = [Companion.parse(c, True, c["name"] in sidecars) for c in status.get("initContainerStatuses", [])]
    beside = [c for c in status.get("containerStatuses", []) if c["name"] != names.CONTAINER]
    return (*first, *(Companion.parse(c, False, False) for c in beside))


def _by_the_cluster(companion: Companion, behind: timedelta, written: datetime | None) -> Companion:
    if companion.finished is None:
        return companion
    return replace(companion, finished=companion.finished + node_clocks.correction(behind, companion.finished, written))


def _condition(condition: Object, managed: list[Object]) -> PodCondition:
    is_refused = condition["type"] == "PodScheduled" and condition["status"] == "False"
    return PodCondition(
        sys.intern(condition["status"]),
        condition.get("reason", ""),
        condition.get("message", ""),
        _time(condition.get("lastTransitionTime")),
        _said_since(managed) if is_refused else None,
    )


def _said_since(managed: list[Object]) -> datetime | None:
    """Return when the scheduler last changed its message, from the managedFields of the pod.

    It writes only what has changed. lastTransitionTime stays while the pod has no node. Several programs can be
    schedulers, so the name of the field manager differs."""
    times = []
    for entry in managed:
        conditions = entry.get("fieldsV1", {}).get("f:status", {}).get("f:conditions", {})
        if "time" in entry and "f:message" in conditions.get('k:{"type":"PodScheduled"}', {}):
            times.append(datetime.fromisoformat(entry["time"]))
    return max(times, default=None)


def _corrected(conditions: dict[str, PodCondition], correction: timedelta) -> dict[str, PodCondition]:
    """Return the conditions by the clock of the cluster. The kubelet writes only one of those that are read."""
    target = conditions.get("DisruptionTarget")
    if not correction or target is None or target.since is None or target.reason != "TerminationByKubelet":
        return conditions
    return conditions | {"DisruptionTarget": replace(target, since=target.since + correction)}


def _termination(text: str, exit_code: int | None) -> TerminationMessage | None:
    """Return the trainer's termination message; None if it wrote none (then the text is the end of the log).

    A reason of a later version of the trainer becomes that of its exit code, and stays in the message."""
    try:
        said = json.loads(text)
        if isinstance(said, dict) and exit_code and isinstance(said.get("reason"), str):
            word = said["reason"]
            if word not in {*FailureReason, "Succeeded", "Superseded"}:
                said |= {"reason": reason_of_exit_code(exit_code), "message": f"{word}: {said.get('message', '')}"}
        return TerminationMessage.model_validate(said, extra="ignore")
    except (ValueError, RecursionError):
        return None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
