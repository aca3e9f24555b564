"""One child Job of a FineTuneJob with its pods, as plain data."""

import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_operator.observed import gangs
from finetune_operator.observed.causes.workloads import Hold
from finetune_operator.observed.facts.pods import Object, Pod

RESUMED = timedelta(seconds=60)
"""The controller of a resumed Job creates its pods before it writes startTime, so a pod can have its node earlier."""


@dataclass(frozen=True, slots=True)
class Run:
    """One child Job and its Pod, if the Pod exists."""

    name: str
    created: datetime
    succeeded: bool = False
    failed: bool = False
    failure: str = ""
    """Why the Job failed, if the cause is not a failed pod, for example a deadline that was set on the Job."""
    pods_end_by: datetime | None = None
    """Time at which its pods have ended, also if nobody saw it: when the Job failed or succeeded, or the grace period
    after it was suspended, if it still is."""
    is_gone: bool = False
    """Whether the Job was deleted. It has failed then, and a pod of it can still exist."""
    suspended: bool = False
    suspended_by: str = ""
    """Field manager that suspended the Job; "" if a webhook suspended it when it was created."""
    queue: str | None = None
    """Queue of the Job, from its label."""
    gpu_type: str | None = None
    """Name of the GPU type that the Job requests, from its label."""
    nodes: int = 1
    """Number of nodes, each with one pod."""
    suspended_since: datetime | None = None
    """When the Job was suspended, as the Job controller reports it."""
    hold: Hold | None = None
    """Why Kueue holds the Job back; None unless the Job is suspended and has a queue, and the operator may ask."""
    begun: datetime | None = None
    """When the Job was started or last resumed."""
    pod: Pod | None = None
    """The pod that counts; on several nodes, the one that decides the state of the run."""
    pods: tuple[Pod, ...] = ()
    """All pods that exist."""
    mounted: tuple[str, ...] = ()
    """Names of the Secrets and ConfigMaps that its pods mount."""
    bundle_digest: str = ""
    """Digest of the bundle that its pods accept; "" for a Job of an earlier version, whose pods accept any."""
    refusal: str = ""
    """Why the API server refuses the pod, as the Job controller reports it, for example a quota or a policy."""

    @property
    def on_nodes(self) -> list[Pod]:
        """Return the pod that counts on each node, in the order of their index, without those that do not exist."""
        if self.nodes == 1:
            return [] if self.pod is None else [self.pod]
        return gangs.of_nodes(self.pods)

    @property
    def lacks_pods(self) -> bool:
        """Whether not every node has a pod."""
        return self.pod is None or len(self.on_nodes) < self.nodes

    @property
    def is_live(self) -> bool:
        """Whether the Job can still start or hold a pod."""
        if self.succeeded or self.failed:
            return False
        return self.lacks_pods or any(pod.is_leaving or not pod.is_over for pod in self.on_nodes)

    def lacks(self, config_map: str) -> bool:
        """Whether the pod cannot start because somebody deleted this ConfigMap, as the kubelet reports it."""
        event = self.pod.event if self.pod else None
        return event is not None and f'configmap "{config_map}" not found' in event.message

    @classmethod
    def parse(cls, job: Object) -> "Run":
        """Return the run from the Job's JSON, without a pod."""
        metadata, status = job["metadata"], job.get("status", {})
        true = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
        return cls(
            name=metadata["name"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            succeeded="Complete" in true,
            failed="Failed" in true,
            failure=_own_failure(true.get("Failed", {})),
            pods_end_by=_pods_end_by(job, true),
            suspended=bool(job.get("spec", {}).get("suspend")),
            suspended_since=_optional_time(true.get("Suspended", {}).get("lastTransitionTime")),
            suspended_by=_suspended_by(metadata.get("managedFields", [])),
            queue=metadata.get("labels", {}).get(names.LABEL_QUEUE),
            gpu_type=metadata.get("labels", {}).get(names.LABEL_GPU_TYPE),
            nodes=job.get("spec", {}).get("completions") or 1,
            begun=_optional_time(status.get("startTime")),
            mounted=_mounted(job),
            bundle_digest=_bundle_digest(job),
        )

    def with_pods(self, pods: list[Pod]) -> "Run":
        """Return the run with the pod that counts. A resumed Job has several pods, for each of its nodes."""
        counts = gangs.deciding(pods) if self.nodes > 1 else gangs.newest(pods)
        return replace(self, pod=counts, pods=tuple(pods))


def _pods_end_by(job: Object, true: dict[str, Object]) -> datetime | None:
    if ended := true.get("Failed") or true.get("Complete"):
        return _optional_time(ended.get("lastTransitionTime"))
    spec = job.get("spec", {})
    if not spec.get("suspend"):
        return None  # the condition may be of the last stop
    stopped = _optional_time(true.get("Suspended", {}).get("lastTransitionTime"))
    grace = spec.get("template", {}).get("spec", {}).get("terminationGracePeriodSeconds") or 0
    return stopped and stopped + timedelta(seconds=grace)


def _mounted(job: Object) -> tuple[str, ...]:
    volumes = job.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", [])
    found = [v.get("secret", {}).get("secretName") or v.get("configMap", {}).get("name") for v in volumes]
    return tuple(sys.intern(name) for name in found if name)


def _bundle_digest(job: Object) -> str:
    containers = job.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    variables = [variable for container in containers for variable in container.get("env", [])]
    found = (v.get("value", "") for v in variables if v["name"] == names.BUNDLE_DIGEST_VARIABLE)
    return sys.intern(next(found, ""))


def _own_failure(condition: Object) -> str:
    """Return reason and message of a Job's condition Failed; "" if the condition only reports failed pods."""
    if condition.get("reason", "BackoffLimitExceeded") in ("BackoffLimitExceeded", "FailedIndexes"):
        return ""
    return f"{condition['reason']}: {condition.get('message', '')}"


def _suspended_by(managed: list[Object]) -> str:
    """Return the field manager of spec.suspend, unless it created the Job and so also manages spec.backoffLimit.

    A change by a webhook counts as a change by the creator."""
    own = [(entry.get("manager", ""), entry.get("fieldsV1", {}).get("f:spec", {})) for entry in managed]
    return next((who for who, spec in own if "f:suspend" in spec and "f:backoffLimit" not in spec), "")


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
