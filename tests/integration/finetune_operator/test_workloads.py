"""Kueue's Workloads on a real API server: read at the version that is served, also after an upgrade of Kueue."""

from collections.abc import Iterator

import pytest
from kubernetes.config import kube_config

from devcluster import Cluster
from finetune_operator.cluster.api import KubernetesApi
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.observed.workloads import UNKNOWN
from tests.integration.kube import BATCH_JOBS, Kube, Object, RefusedError
from tests.integration.waiting import wait_for

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "workloads.kueue.x-k8s.io"
WORKLOADS = "/apis/kueue.x-k8s.io/{}/namespaces/{}/workloads"
NO_ROOM = "Waiting for quota in queue gpus: no room."


def definition(old: bool, new: bool) -> Object:
    """Kueue's definition without its schema. `old`, `new`: whether v1beta1 and v1beta2 are served."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    versions = [
        {"name": name, "served": served, "storage": name == "v1beta1", "schema": {"openAPIV3Schema": anything}}
        for name, served in (("v1beta1", old), ("v1beta2", new))
    ]
    kind = {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": kind, "versions": versions},
    }


@pytest.fixture
def served(kube: Kube) -> Iterator[Kube]:
    kube.apply(f"{DEFINITIONS}/{NAME}", definition(old=True, new=False))
    yield kube
    kube.delete(f"{DEFINITIONS}/{NAME}")


@pytest.fixture
def workloads(installed: Cluster, monkeypatch: pytest.MonkeyPatch) -> Workloads:
    # The client reads $KUBECONFIG when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(installed.kubeconfig))
    return Workloads(KubernetesApi(1))


def job_with_workload(kube: Kube, namespace: str) -> str:
    """Creates a suspended Job and the Workload that Kueue would make for it. Returns the Job's uid."""
    container = {"name": "main", "image": "registry.example/main"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    body = {"metadata": {"name": "a"}, "spec": {"suspend": True, "template": template}}
    uid = str(kube.create(BATCH_JOBS.format(namespace), body)["metadata"]["uid"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "a", "uid": uid, "controller": True}
    reserved = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no room"}
    workload = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {"name": "job-a", "labels": {"kueue.x-k8s.io/job-uid": uid}, "ownerReferences": [owner]},
        "status": {"conditions": [reserved]},
    }
    path = WORKLOADS.format("v1beta1", namespace)
    wait_for("Workloads to be served", lambda: is_served(kube, path))
    kube.create(path, workload)
    return uid


def is_served(kube: Kube, path: str) -> bool:
    try:
        kube.list(path)
    except RefusedError:
        return False
    return True


def test_a_cluster_without_kueue_has_nothing_to_say(kube: Kube, namespace: str, workloads: Workloads) -> None:
    assert workloads.hold(namespace, "1234", "gpus") == UNKNOWN


def test_the_served_version_is_read_and_after_an_upgrade_the_next_one(
    served: Kube, namespace: str, workloads: Workloads
) -> None:
    uid = job_with_workload(served, namespace)
    wait_for("the API server to name the group", lambda: workloads.hold(namespace, uid, "gpus").message == NO_ROOM)

    served.apply(f"{DEFINITIONS}/{NAME}", definition(old=False, new=True))

    wait_for("v1beta1 to end", lambda: not is_served(served, WORKLOADS.format("v1beta1", namespace)))
    wait_for("v1beta2 to be read", lambda: workloads.hold(namespace, uid, "gpus").message == NO_ROOM)
    assert "no Workload" in workloads.hold(namespace, "another", "gpus").message
