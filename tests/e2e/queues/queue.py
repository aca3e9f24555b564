"""A queue of Kueue with the quota and the priorities of the example."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from devcluster import Cluster
from finetune_api import names
from tests.e2e.tenant import Tenant
from tests.integration.jobs import GPU, Job
from tests.integration.kube import BATCH_JOBS, Kube, Object
from tests.integration.waiting import wait_for

API = "kueue.x-k8s.io/v1beta2"
EXAMPLE = Path(__file__).parents[3] / "examples" / "kueue" / "queues.yaml"
QUEUE = "gpus"
URGENT, NORMAL = "urgent", "normal"
"""Priority classes."""
IN_QUEUE = {names.LABEL_QUEUE: QUEUE, names.LABEL_PRIORITY_CLASS: NORMAL}
"""Labels of a FineTuneJob in the queue."""


@dataclass(frozen=True)
class Queue:
    """The LocalQueue QUEUE of the team; a Job with a higher priority pushes one with a lower priority out of it."""

    kube: Kube
    namespace: str

    def has_room_for(self, gpus: int) -> None:
        """Sets the quota."""
        path = f"/apis/{API}/clusterqueues/{QUEUE}"
        spec = self.kube.get(path)["spec"]
        (resources,) = (flavor["resources"] for flavor in spec["resourceGroups"][0]["flavors"])
        next(resource for resource in resources if resource["name"] == GPU)["nominalQuota"] = str(gpus)
        self.kube.merge(path, {"spec": spec})

    def open_for_preflights(self, name: str) -> None:
        """Creates another LocalQueue of the same ClusterQueue."""
        metadata = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": API, "kind": "LocalQueue", "metadata": metadata, "spec": {"clusterQueue": QUEUE}}
        self.kube.create(f"/apis/{API}/namespaces/{self.namespace}/localqueues", body)

    def workload_of(self, job_uid: str) -> Object:
        """Kueue's Workload of a Job."""
        path = f"/apis/{API}/namespaces/{self.namespace}/workloads"
        (workload,) = self.kube.list(path, labelSelector=f"kueue.x-k8s.io/job-uid={job_uid}")
        return workload

    def take(self, name: str, priority: str) -> str:
        """Creates a Job of somebody else that wants one GPU and runs until it is deleted. Returns its path."""
        container = {"name": "other", "image": "localhost/pause:dev", "resources": {"limits": {GPU: "1"}}}
        container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        pod = {
            "restartPolicy": "Never",
            "containers": [container],
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        labels = {names.LABEL_QUEUE: QUEUE, names.LABEL_PRIORITY_CLASS: priority}
        metadata = {"name": name, "namespace": self.namespace, "labels": labels}
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}
        self.kube.create(BATCH_JOBS.format(self.namespace), body)
        return f"{BATCH_JOBS.format(self.namespace)}/{name}"


def trainers(job: Job) -> list[Object]:
    return [pod for pod in job.pods() if pod["metadata"]["labels"].get(names.LABEL_STEP) == "train"]


@contextmanager
def open_queue(cluster: Cluster, tenant: Tenant) -> Iterator[Queue]:
    """Runs Kueue with a LocalQueue in the tenant's namespace. Without Kueue, its webhooks would refuse every pod, so
    they go as well."""
    cluster.start_kueue()
    for item in _example(tenant.namespace):
        cluster.kubectl("apply", "-f", "-", input=json.dumps(item))
    yield Queue(tenant.kube, tenant.namespace)
    for path in (
        f"/apis/{names.API_VERSION}/namespaces/{tenant.namespace}/{names.JOBS}",
        BATCH_JOBS.format(tenant.namespace),
        f"/apis/{API}/namespaces/{tenant.namespace}/localqueues",
        f"/apis/{API}/clusterqueues",
        f"/apis/{API}/resourceflavors",
    ):
        tenant.kube.delete(path)  # the whole collection; Kueue removes its finalizers from each object
        wait_for(f"{path} to be empty", lambda path=path: tenant.kube.list(path), lambda left: not left)
    workloads = f"/apis/{API}/namespaces/{tenant.namespace}/workloads"
    wait_for("the Workloads to go", lambda: tenant.kube.list(workloads), lambda left: not left)
    cluster.stop_kueue()


def _example(namespace: str) -> list[Object]:
    """The queues of the example, for this namespace."""
    objects: list[Object] = list(yaml.safe_load_all(EXAMPLE.read_text()))
    for item in objects:
        if "namespace" in item["metadata"]:
            item["metadata"]["namespace"] = namespace
    return objects
