"""A FineTuneJob as its tenant sees it, and what the operator made for it."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from finetune_api import names
from finetune_api.reasons import FailureReason, finding_of, sentence
from tests.integration.kube import BATCH_JOBS, JOBS, PODS, Kube, Object
from tests.integration.waiting import TIMEOUT_SECONDS, wait_for

PREFLIGHT, ATTEMPT = "preflight", "a1"
GPU = "nvidia.com/gpu"


def manifest(name: str = "tickets", **spec: Any) -> Object:
    """The shortest FineTuneJob, with `spec`'s fields beside or instead of its own. Its output is its alone."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://acme-models/smollm2"},
            "dataset": {"train": [{"uri": "s3://acme-data/tickets/*.jsonl"}]},
            "output": {"uri": f"s3://acme-models/{name}-{uuid4().hex}"},
            **spec,
        },
    }


@dataclass(frozen=True)
class Job:
    """One FineTuneJob that was created."""

    kube: Kube
    namespace: str
    name: str
    uid: str

    @classmethod
    def create(cls, kube: Kube, namespace: str, body: Object) -> "Job":
        metadata = kube.create(JOBS.format(namespace), body)["metadata"]
        return cls(kube, namespace, metadata["name"], metadata["uid"])

    @property
    def path(self) -> str:
        return f"{JOBS.format(self.namespace)}/{self.name}"

    @property
    def selector(self) -> str:
        return f"{names.LABEL_JOB_UID}={self.uid}"

    def child(self, suffix: str) -> str:
        """Name of the batch Job: PREFLIGHT or ATTEMPT."""
        return f"{names.child_prefix(self.name, self.uid)}-{suffix}"

    def read(self) -> Object:
        return self.kube.get(self.path)

    def status(self) -> Object:
        status: Object = self.read()["status"]
        return status

    def conditions(self) -> dict[str, str]:
        """Status by type."""
        return {c["type"]: c["status"] for c in self.status().get("conditions", [])}

    def ready(self) -> Object:
        """The condition Ready; empty while there is none."""
        return ready_of(self.status())

    def is_complete(self) -> bool:
        return bool(self.ready().get("status") == "True")

    def wait_for_reason(self, reason: str, timeout: float = TIMEOUT_SECONDS) -> Object:
        """The status, once Ready carries this reason."""
        return wait_for(
            f"{self.name} to be {reason}", self.status, lambda s: ready_of(s).get("reason") == reason, timeout
        )

    def assert_failed(self, reason: FailureReason, text: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """The end as tenant and pipeline see it: one reason everywhere, the remedy, one Warning, no GPU held."""
        status = self.wait_for_reason(reason, timeout)
        message = self.ready()["message"]
        assert text in message
        assert message == sentence(reason, finding_of(reason, message))
        assert (status["state"], status.get("stage"), kstatus(self.read())) == ("Failed", None, "Failed")
        conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
        assert [conditions[type] for type in ("Failed", "Stalled")] == [("True", reason)] * 2
        assert "Complete" not in conditions
        warnings = [event for event in self.events() if event["type"] == "Warning"]
        assert [(event["reason"], event["message"]) for event in warnings] == [(reason, message)]
        # The operator has deleted the Job; the garbage collector follows in its own time.
        wait_for("no GPU to be held", self._gpu_pods_that_run, lambda pods: not pods)

    def events(self) -> list[Object]:
        """In the order they were made."""
        selector = f"involvedObject.uid={self.uid}"
        events = self.kube.list(f"/api/v1/namespaces/{self.namespace}/events", fieldSelector=selector)
        return sorted(events, key=lambda event: int(event["metadata"]["resourceVersion"]))

    def batch_jobs(self) -> dict[str, Object]:
        """By the last part of their name."""
        found = self.kube.list(BATCH_JOBS.format(self.namespace), labelSelector=self.selector)
        return {job["metadata"]["name"].rsplit("-", 1)[1]: job for job in found}

    def pods(self) -> list[Object]:
        return self.kube.list(PODS.format(self.namespace), labelSelector=self.selector)

    def _gpu_pods_that_run(self) -> list[str]:
        pods = [pod for pod in self.pods() if GPU in str(pod["spec"])]
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    def config_maps(self) -> list[Object]:
        return self.kube.list(f"/api/v1/namespaces/{self.namespace}/configmaps", labelSelector=self.selector)

    def children(self) -> dict[str, str]:
        """Everything that was made for it: uid by kind and name."""
        found = {
            "Job": list(self.batch_jobs().values()),
            "Pod": self.pods(),
            "ConfigMap": self.config_maps(),
        }
        return {f"{kind}/{o['metadata']['name']}": o["metadata"]["uid"] for kind, items in found.items() for o in items}


def ready_of(status: Object) -> Object:
    """The condition Ready of a status; empty while there is none."""
    return next((dict(c) for c in status.get("conditions", []) if c["type"] == "Ready"), {})


def kstatus(body: Object) -> str:
    """What Flux, Argo CD and Helm make of an object, by the rules of sigs.k8s.io/cli-utils/pkg/kstatus."""
    status, metadata = body.get("status", {}), body["metadata"]
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"
