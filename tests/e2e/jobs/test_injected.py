"""Webhooks add sidecars to pods. A plain sidecar never ends by itself: the trainer's end is the job's all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devcluster import Cluster, images
from finetune_api import names
from tests.e2e.mutations import mutated
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.thorough

SCRIPT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); signal.pause(); signal.pause()"
SIDECAR = f"""
[JSONPatch{{
  op: "add", path: "/spec/containers/0",
  value: Object.spec.containers{{
    name: "mesh-proxy",
    image: "{images.TRAINER_IMAGE}",
    imagePullPolicy: "IfNotPresent",
    command: ["{images.python()}", "-c", "{SCRIPT}"],
    securityContext: Object.spec.containers.securityContext{{
      allowPrivilegeEscalation: false,
      capabilities: Object.spec.containers.securityContext.capabilities{{drop: ["ALL"]}}
    }}
  }}
}}]
"""


BOTH = ("mesh-proxy", names.CONTAINER)
ENOUGH, TOO_LITTLE = {"cpu": "500m", "memory": "2Gi"}, {"cpu": "500m", "memory": "150Mi"}
MESHED = [
    ("meshed-good", ENOUGH, "Complete", "Succeeded"),
    ("meshed-bad", TOO_LITTLE, "Failed", "HostOutOfMemory"),
]


def containers(job: Job) -> set[tuple[str, ...]]:
    return {tuple(c["name"] for c in pod["spec"]["containers"]) for pod in job.pods()}


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    """Two jobs whose pods get a sidecar before the trainer."""
    rows = tenant.put_rows("injected.jsonl", sums(30))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    with contextmanager(mutated)(cluster, tenant, "meshed", SIDECAR, "mesh-proxy"):
        made = {name: tenant.create(name, rows, dataset=dataset, compute=wish) for name, wish, _, _ in MESHED}
        for job in made.values():
            wait_for("a pod with a sidecar", lambda job=job: containers(job), lambda found: BOTH in found)
        yield made


@pytest.mark.parametrize(("name", "state", "reason"), [(name, *end) for name, _, *end in MESHED])
def test_the_trainers_container_decides_the_result_and_no_pod_remains(
    tenant: Tenant, jobs: dict[str, Job], name: str, state: str, reason: str
) -> None:
    job = jobs[name]
    status = tenant.end_of(job)

    assert (status["state"], status["attempts"][0]["reason"]) == (state, reason), message(status)
    wait_for("every pod to go", job.pods, lambda pods: not pods)
