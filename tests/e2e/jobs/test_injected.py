"""What webhooks do to pods. A plain sidecar never ends by itself: the trainer's end is the job's all the same. A pod
that cannot start says why in the kubelet's words."""

import json
from collections.abc import Iterator

import pytest

from devcluster import Cluster, images
from finetune_api import names
from finetune_operator.observed import starting
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


@pytest.fixture(scope="module")
def no_sandbox(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Gives the pods of a job whose name begins with "boxed" a runtime that no node has."""
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nowhere"}}
    installed.kubectl("apply", "-f", "-", input=json.dumps({**runtime, "handler": "nowhere"}))
    patch = '[JSONPatch{op: "add", path: "/spec/runtimeClassName", value: "nowhere"}]'
    yield from mutated(installed, tenant, "boxed", patch, "nowhere")
    installed.kubectl("delete", "runtimeclass", "nowhere")


def containers(job: Job) -> set[tuple[str, ...]]:
    return {tuple(c["name"] for c in pod["spec"]["containers"]) for pod in job.pods()}


@pytest.fixture(scope="module")
def jobs(tenant: Tenant, mesh: None, no_sandbox: None) -> dict[str, Job]:
    """All of them at once, because each waits for a grace of the operator to pass."""
    rows = tenant.put_rows("injected.jsonl", sums(30))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    compute = {"boxed": ENOUGH, **{name: wish for name, wish, _, _ in MESHED}}
    made = {name: tenant.create(name, rows, dataset=dataset, compute=wish) for name, wish in compute.items()}
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


def test_a_failed_sandbox_is_reported_with_the_kubelets_message(tenant: Tenant, jobs: dict[str, Job]) -> None:
    job = jobs["boxed"]

    told = wait_for(
        "the kubelet's word",
        lambda: str(job.ready().get("message")),
        lambda said: "cannot start: FailedCreatePodSandBox: " in said,
        timeout=starting.STUCK_AFTER.total_seconds() + 60,
    )

    assert 'no runtime for "nowhere" is configured' in told
    tenant.kube.delete(job.path)
