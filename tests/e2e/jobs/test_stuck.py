"""A job whose pod cannot start says why, and what helps, at the latest when the operator's patience has passed."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from devcluster import Cluster
from finetune_operator.observed.causes import starting
from tests.e2e.mutations import mutated
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, sums
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

VOLUME = """[
  JSONPatch{{op: "add", path: "/spec/volumes/-", value: Object.spec.volumes{{name: "added", {0}}}}},
  JSONPatch{{
    op: "add", path: "/spec/containers/0/volumeMounts/-",
    value: Object.spec.containers.volumeMounts{{name: "added", mountPath: "/added"}}
  }}
]"""
"""The kubelet waits only for volumes that a container mounts."""
SECRET = VOLUME.format('secret: Object.spec.volumes.secret{secretName: "nowhere"}')
CLAIM = VOLUME.format('persistentVolumeClaim: Object.spec.volumes.persistentVolumeClaim{claimName: "nowhere"}')
SANDBOX = '[JSONPatch{op: "add", path: "/spec/runtimeClassName", value: "nowhere"}]'
ADDED = {"secret": SECRET, "claim": CLAIM, "sandbox": SANDBOX}
"""What webhooks add to the pods of a job, by its name. There is no Secret, claim or runtime of the name "nowhere"."""
TOLD = {
    "secret": ('secret "nowhere" not found', "Create Secret nowhere. The pod then starts by itself."),
    "claim": (
        'persistentvolumeclaim "nowhere" not found',
        "Create PersistentVolumeClaim nowhere. The pod then starts by itself.",
    ),
    "sandbox": ("cannot start: FailedCreatePodSandBox: ", 'no runtime for "nowhere" is configured'),
}
"""What each job must say: the cluster's own words, and the remedy where there is one."""


@dataclass(frozen=True)
class Stuck(Job):
    """`told`: the message of the job, once it names the cause. Later on the kubelet gives other words for the same."""

    told: Future[str]


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Stuck]]:
    """A job for each addition. Its preflight requests little, because it keeps what it requests from other jobs."""
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nowhere"}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps({**runtime, "handler": "nowhere"}))
    little = tenant.profile_with("stuck", pods={"preflight": {"resources": {"requests": {"cpu": "20m"}}}})
    rows = tenant.put_rows("stuck.jsonl", sums(30))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    with ExitStack() as policies, ThreadPoolExecutor(len(ADDED)) as pool:
        for name, patch in ADDED.items():
            policies.enter_context(contextmanager(mutated)(cluster, tenant, f"stuck-{name}", patch, "nowhere"))
        jobs = {name: tenant.create(f"stuck-{name}", rows, profileName=little, dataset=dataset) for name in ADDED}
        yield {name: Stuck(**vars(job), told=pool.submit(message, job, name)) for name, job in jobs.items()}
        for job in jobs.values():
            tenant.kube.delete(job.path)
    cluster.kubectl("delete", "runtimeclass", "nowhere")


def message(job: Job, name: str) -> str:
    """The message of the job, once it has the last part of what it must say."""
    return wait_for(
        f"{name} to say why",
        lambda: str(job.ready().get("message")),
        lambda said: TOLD[name][1] in said,
        starting.STUCK_AFTER.total_seconds() + 120,
    )


@pytest.mark.parametrize("name", TOLD)
def test_a_job_whose_pod_does_not_start_says_why_in_the_clusters_words(jobs: dict[str, Stuck], name: str) -> None:
    assert TOLD[name][0] in jobs[name].told.result()
