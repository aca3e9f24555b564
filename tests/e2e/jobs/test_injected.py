"""Webhooks add sidecars to pods. A plain sidecar never ends by itself: the trainer's end is the job's all the same."""

from collections.abc import Iterator

import pytest

from devcluster import Cluster, images
from finetune_api import names
from tests.e2e.mutations import mutated
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

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


ENOUGH, TOO_LITTLE = {"cpu": "500m", "memory": "2Gi"}, {"cpu": "500m", "memory": "150Mi"}
MESHED = [
    ("meshed-good", ENOUGH, "Complete", "Succeeded"),
    ("meshed-bad", TOO_LITTLE, "Failed", "HostOutOfMemory"),
]


@pytest.fixture(scope="module")
def mesh(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Puts a sidecar before the trainer in every pod of a job whose name begins with "meshed"."""
    yield from mutated(installed, tenant, "meshed", SIDECAR, "mesh-proxy")


def containers(job: Job) -> set[tuple[str, ...]]:
    return {tuple(c["name"] for c in pod["spec"]["containers"]) for pod in job.pods()}


@pytest.fixture(scope="module")
def jobs(tenant: Tenant, mesh: None) -> dict[str, Job]:
    """Both at once, because each waits for a grace of the operator to pass."""
    rows = tenant.put_rows("injected.jsonl", sums(30))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    made = {name: tenant.create(name, rows, dataset=dataset, compute=wish) for name, wish, _, _ in MESHED}
    both = ("mesh-proxy", names.CONTAINER)
    for name, *_ in MESHED:
        wait_for("a pod with a sidecar", lambda name=name: containers(made[name]), lambda found: both in found)
    return made


@pytest.mark.parametrize(("name", "state", "reason"), [(name, *end) for name, _, *end in MESHED])
def test_the_trainers_container_decides_the_result_and_no_pod_remains(
    tenant: Tenant, jobs: dict[str, Job], name: str, state: str, reason: str
) -> None:
    job = jobs[name]
    status = tenant.end_of(job)

    assert (status["state"], status["attempts"][0]["reason"]) == (state, reason), message(status)
    wait_for("every pod to go", job.pods, lambda pods: not pods)
