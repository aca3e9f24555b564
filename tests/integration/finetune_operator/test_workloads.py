"""Kueue's Workloads on a real API server: read at the version that is served, also after an upgrade of Kueue."""

from collections.abc import Iterator

import pytest
from kubernetes.config import kube_config

from devcluster import Cluster
from finetune_operator.cluster.api import KubernetesApi
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.observed.causes.workloads import UNKNOWN
from tests.integration.finetune_operator.kueue import DEFINITION, WORKLOADS, definition, is_served
from tests.integration.kube import BATCH_JOBS, Kube
from tests.integration.waiting import wait_for

NO_ROOM = "Waiting for quota in queue gpus: no room."


@pytest.fixture
def served(kube: Kube) -> Iterator[Kube]:
    kube.apply(DEFINITION, definition(old=True, new=False))
    yield kube
    kube.delete(DEFINITION)


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


def test_a_cluster_without_kueue_has_nothing_to_say(kube: Kube, namespace: str, workloads: Workloads) -> None:
    assert workloads.hold(namespace, "1234", "gpus") == UNKNOWN


def test_the_served_version_is_read_and_after_an_upgrade_the_next_one(
    served: Kube, namespace: str, workloads: Workloads
) -> None:
    uid = job_with_workload(served, namespace)
    wait_for("the API server to name the group", lambda: workloads.hold(namespace, uid, "gpus").message == NO_ROOM)

    served.apply(DEFINITION, definition(old=False, new=True))

    wait_for("v1beta1 to end", lambda: not is_served(served, WORKLOADS.format("v1beta1", namespace)))
    wait_for("v1beta2 to be read", lambda: workloads.hold(namespace, uid, "gpus").message == NO_ROOM)
    assert "no Workload" in workloads.hold(namespace, "another", "gpus").message
