"""A stand-in for Kueue, whose webhooks need a cluster with a node.

It makes Jobs suspended as Kueue's webhook does, and plays Workloads by writing what Kueue 0.17 writes at each step
(pkg/workload, pkg/controller/core/workload_controller.go and pkg/controller/jobframework/reconciler.go of Kueue). What
the real Kueue does is for tests/e2e/queues."""

from collections.abc import Iterator
from contextlib import contextmanager

import requests

from finetune_api import names
from tests.integration.kube import BATCH_JOBS, Kube, Object, RefusedError
from tests.integration.waiting import wait_for

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workloads.kueue.x-k8s.io"
WORKLOADS = "/apis/kueue.x-k8s.io/{}/namespaces/{}/workloads"
VERSION = "v1beta2"
DEACTIVATED = "The workload is deactivated"
_POLICIES = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"
_BINDINGS = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"


def definition(old: bool, new: bool) -> Object:
    """Kueue's definition without its schema. `old`, `new`: whether v1beta1 and v1beta2 are served."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    versions = [
        {"name": name, "served": served, "storage": name == "v1beta1", "schema": {"openAPIV3Schema": anything}}
        for name, served in (("v1beta1", old), (VERSION, new))
    ]
    kind = {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION.rpartition("/")[2]},
        "spec": {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": kind, "versions": versions},
    }


def is_served(kube: Kube, path: str) -> bool:
    try:
        kube.list(path)
    except (RefusedError, requests.JSONDecodeError):  # the API server answers in plain text if nobody serves the path
        return False
    return True


@contextmanager
def jobs_are_held(kube: Kube, namespace: str, queue: str = "") -> Iterator[None]:
    """Every Job of the namespace is made suspended, or every one with a queue, if one is named."""
    jobs = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    has_queue = f"has(object.metadata.labels) && '{names.LABEL_QUEUE}' in object.metadata.labels"
    conditions = [{"name": "its-namespace", "expression": f"request.namespace == '{namespace}'"}]
    conditions += [{"name": "has-a-queue", "expression": has_queue}] if queue else []
    spec = {
        "matchConstraints": {"resourceRules": [jobs]},
        "matchConditions": conditions,
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{spec: Object.spec{suspend: true}}"},
            }
        ],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
    }
    kube.create(_POLICIES, {"metadata": {"name": namespace}, "spec": spec})
    binding = {"metadata": {"name": namespace}, "spec": {"policyName": namespace}}
    kube.create(_BINDINGS, binding)
    labels = {names.LABEL_QUEUE: queue} if queue else {}
    wait_for("the policy to count", lambda: _makes_suspended_jobs(kube, namespace, labels))
    yield
    for path in (_BINDINGS, _POLICIES):
        kube.delete(f"{path}/{namespace}")


def _makes_suspended_jobs(kube: Kube, namespace: str, labels: dict[str, str]) -> bool:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    body = {"metadata": {"generateName": "try-", "labels": labels}, "spec": {"template": {"spec": pod}}}
    made = kube.create(BATCH_JOBS.format(namespace), body)
    kube.delete(f"{BATCH_JOBS.format(namespace)}/{made['metadata']['name']}")
    return bool(made["spec"]["suspend"])


class Workload:
    """The Workload of a Job, and what Kueue does with both. A person deactivates and activates it."""

    def __init__(self, kube: Kube, job: Object) -> None:
        """Creates it, as Kueue does for each Job with a queue."""
        metadata = job["metadata"]
        self._kube = kube
        self.name = f"job-{metadata['name']}"
        self._job = f"{BATCH_JOBS.format(metadata['namespace'])}/{metadata['name']}"
        workloads = WORKLOADS.format(VERSION, metadata["namespace"])
        self._path = f"{workloads}/{self.name}"
        self._queue = metadata["labels"][names.LABEL_QUEUE]
        self._conditions: dict[str, Object] = {}
        self._checks: list[Object] = []
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        labels = {"kueue.x-k8s.io/job-uid": metadata["uid"]}
        about = {"name": self.name, "labels": labels, "ownerReferences": [{**owner, "controller": True}]}
        spec = {"active": True, "queueName": self._queue}
        body = {"apiVersion": f"kueue.x-k8s.io/{VERSION}", "kind": "Workload", "metadata": about, "spec": spec}
        kube.create(workloads, body)

    # What Kueue does

    def has_no_quota(self, message: str) -> None:
        self._says("QuotaReserved", False, "Pending", message)

    def reserves_quota(self, *checks: str) -> None:
        """`checks`: names of the admission checks of the ClusterQueue."""
        if self._holds("Evicted"):
            self._says("Evicted", False, "QuotaReserved", f"Previously: {self._conditions['Evicted']['message']}")
        self._checks = [{"name": name, "state": "Pending", "message": ""} for name in checks]
        self._says("QuotaReserved", True, "QuotaReserved", f"Quota reserved in ClusterQueue {self._queue}")

    def check_is(self, name: str, state: str, message: str) -> None:
        """The controller of an admission check says so."""
        self._checks = [c if c["name"] != name else {**c, "state": state, "message": message} for c in self._checks]
        self._write()

    def admits(self) -> None:
        """The quota is reserved and all checks are ready, so the Job is started."""
        self._says("Admitted", True, "Admitted", "The workload is admitted")
        self._suspend(False)

    def evicts(self, reason: str, message: str) -> None:
        """The Job is stopped. Until its pods have ended, the Workload keeps its quota and is admitted."""
        self._checks = [
            {**c, "state": "Pending", "message": f"Reset to Pending after eviction. Previously: {c['state']}"}
            for c in self._checks
        ]
        self._says("Evicted", True, reason, message)
        self._suspend(True)

    def takes_the_quota_back(self) -> None:
        """The pods of the Job have ended after an eviction."""
        evicted = self._conditions["Evicted"]
        self._says("Requeued", evicted["reason"] == "Preempted", evicted["reason"], evicted["message"])
        self._says("QuotaReserved", False, "Pending", evicted["message"])
        if self._holds("Admitted"):
            self._says("Admitted", False, "NoReservation", "The workload has no reservation")

    def rejects(self, check: str, message: str) -> None:
        """An admission check is rejected, so Kueue deactivates the Workload."""
        self.check_is(check, "Rejected", message)
        self._kube.merge(self._path, {"spec": {"active": False}})
        why = f"{DEACTIVATED} due to Admission check(s): {check}, were rejected"
        self.evicts("DeactivatedDueToAdmissionCheck", why)
        self.takes_the_quota_back()

    # What a person does

    def is_deactivated(self) -> None:
        self._kube.merge(self._path, {"spec": {"active": False}})
        if not self._holds("Evicted"):
            self.evicts("Deactivated", DEACTIVATED)

    def is_activated(self) -> None:
        self._kube.merge(self._path, {"spec": {"active": True}})

    def _holds(self, type: str) -> bool:
        return self._conditions.get(type, {}).get("status") == "True"

    def _says(self, type: str, holds: bool, reason: str, message: str) -> None:
        status = "True" if holds else "False"
        self._conditions[type] = {"type": type, "status": status, "reason": reason, "message": message}
        self._write()

    def _write(self) -> None:
        status = {"conditions": list(self._conditions.values()), "admissionChecks": self._checks}
        self._kube.merge(self._path, {"status": status})

    def _suspend(self, suspended: bool) -> None:
        self._kube.merge(self._job, {"spec": {"suspend": suspended}})
