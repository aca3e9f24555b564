"""A job whose pod gets no node or no image, or is refused, says on the real cluster why, and what helps."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster import Cluster
from devcluster.namespaces import FIRST
from devcluster.storage import secret_manifest
from finetune_operator.observed.causes import starting
from tests.e2e.mutations import mutated
from tests.e2e.setting import profile
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, sums
from tests.integration.jobs import Job
from tests.integration.kube import PROFILES, Object
from tests.integration.waiting import wait_for

NOWHERE = "localhost/nothing:here"
HOST = '[JSONPatch{op: "add", path: "/spec/hostPID", value: true}]'
PROFILE_OF: dict[str, dict[str, Any]] = {
    "gpu": {"resourceName": "example.com/gpu"},
    "labels": {"nodeSelector": {"gpu.example/model": "none"}},
}
"""More fields of the GPU type, by the name of the job."""
QUOTAS: dict[str, Object] = {
    "quota": {"kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}},
    "demand": {"kind": "ResourceQuota", "spec": {"hard": {"limits.cpu": "8"}}},
    "range": {"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "max": {"memory": "512Mi"}}]}},
}
"""What restricts the namespace of the job of this name."""
HELPS = {
    "gpu": "add a node with example.com/gpu, or correct resourceName of gpuTypes in the FineTuneProfile",
    "labels": "correct nodeSelector in spec.gpuTypes or spec.pods of the FineTuneProfile, or label a node accordingly",
    "cpu": "free or add CPU; for the training pod, spec.compute.cpu can be lowered",
    "image": "Check that the registry of the image works, and that the nodes reach it.",
    "quota": "The pod alone needs more than ResourceQuota quota allows: raise the quota.",
    "demand": "Add a LimitRange with a default for limits.cpu, because ResourceQuota demand demands it.",
    "range": "Change the LimitRange of the namespace",
    "account": "Create the ServiceAccount, or correct the name.",
    "host": "correct the webhook or policy that changed it",
}
"""The remedy that each job's message must have, by its name."""
WORDS = {
    "gpu": "Insufficient example.com/gpu",
    "labels": "didn't match Pod's node affinity/selector",
    "cpu": "Insufficient cpu",
    "image": NOWHERE,
    "quota": "exceeded quota: quota",
    "demand": "must specify limits.cpu",
    "range": "maximum memory usage per Container is 512Mi",
    "account": 'ServiceAccount "nobody" does not exist',
    "host": "violates PodSecurity",
}
"""The cluster's own words in each message."""


@pytest.fixture(scope="module")
def host_processes(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Lets the pods of the job "waits-host" ask for the host's processes."""
    yield from mutated(installed, tenant, "waits-host", HOST, "violates PodSecurity")


@pytest.fixture(scope="module")
def jobs(tenant: Tenant, installed: Cluster, host_processes: None) -> Iterator[dict[str, Job]]:
    """All of them at once."""
    rows = tenant.put_rows("waiting.jsonl", sums(30))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    compute = {"cpu": "500m", "memory": "2Gi"}
    specs: dict[str, Object] = {name: {} for name in HELPS}
    specs["cpu"] = {"compute": {**compute, "cpu": "1000"}}
    specs["account"] = {"compute": {**compute, "serviceAccountName": "nobody"}}
    for name, gpu_type in PROFILE_OF.items():
        specs[name] = {"profileName": put_profile(tenant, installed, name, **gpu_type)}
    specs["image"] = {"profileName": put_profile(tenant, installed, "image", image=NOWHERE)}
    namespaces = {name: restrict(installed, name, body) for name, body in QUOTAS.items()}
    made = {
        name: Tenant(tenant.kube, namespaces.get(name, tenant.namespace), tenant.s3, tenant.model).create(
            f"waits-{name}", rows, **{"dataset": dataset, **spec}
        )
        for name, spec in specs.items()
    }
    yield made
    for job in made.values():
        tenant.kube.delete(job.path)


def put_profile(tenant: Tenant, cluster: Cluster, name: str, image: str | None = None, **gpu_type: Any) -> str:
    body = profile(cluster.s3_endpoint, **gpu_type)
    body["metadata"]["name"] = f"waiting-{name}"
    if image:
        body["spec"]["trainer"]["image"] = image
    tenant.kube.apply(f"{PROFILES}/waiting-{name}", body)
    return f"waiting-{name}"


def restrict(cluster: Cluster, name: str, body: Object) -> str:
    """Makes a namespace with the Secret of S3 and this restriction."""
    namespace = f"waiting-{name}"
    restriction = {"apiVersion": "v1", **body, "metadata": {"name": name, "namespace": namespace}}
    first = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    for text in (
        json.dumps(first),
        secret_manifest(cluster.s3_keys("admin"), "s3", namespace),
        json.dumps(restriction),
    ):
        cluster.kubectl("apply", "-f", "-", input=text)
    return namespace


@pytest.mark.parametrize("name", HELPS)
def test_a_job_that_waits_says_why_in_the_clusters_words_and_what_helps(jobs: dict[str, Job], name: str) -> None:
    patience = starting.STUCK_AFTER.total_seconds() + 120

    told = wait_for(
        f"{name} to say what helps",
        lambda: str(jobs[name].ready().get("message")),
        lambda m: HELPS[name] in m,
        patience,
    )

    assert WORDS[name] in told


@pytest.fixture
def tainted(installed: Cluster) -> Iterator[None]:
    """A taint on the only node, which pods that run already do not mind."""
    taint = "gpu.example/only=true:NoSchedule"
    installed.kubectl("taint", "node", FIRST.name, taint)
    yield
    installed.kubectl("taint", "node", FIRST.name, f"{taint}-")


def test_a_taint_that_a_pod_does_not_tolerate_is_told_with_what_helps(tenant: Tenant, tainted: None) -> None:
    rows = tenant.put_rows("tainted.jsonl", sums(30))
    job = tenant.create("waits-taint", rows, dataset={"train": [{"uri": rows, "columns": SUMS_COLUMNS}]})

    told = wait_for("the taint to be told", lambda: str(job.ready().get("message")), lambda m: "untolerated taint" in m)

    assert "What helps: remove the taint" in told
    tenant.kube.delete(job.path)
