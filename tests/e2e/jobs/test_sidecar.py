"""A plain sidecar, which a mesh puts into every pod and which never ends by itself: the trainer's end is the job's."""

import json
from collections.abc import Iterator

import pytest

from devcluster import Cluster, images
from finetune_api import names
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

POLICY = "sidecar.example.com"
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


@pytest.fixture(scope="module")
def mesh(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Puts the sidecar before the trainer in every pod of a job whose name begins with "meshed"."""
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ours = f"object.metadata.?labels[?'{names.LABEL_JOB_NAME}'].orValue('').startsWith('meshed')"
    spec = {
        "matchConstraints": {"resourceRules": [pods]},
        "matchConditions": [{"name": "meshed", "expression": ours}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": SIDECAR}}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
    }
    version = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": POLICY}}
    policy = {**version, "kind": "MutatingAdmissionPolicy", "spec": spec}
    binding = {**version, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": POLICY}}
    installed.kubectl(
        "apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
    )
    wait_for("the policy to count", lambda: "mesh-proxy" in _tried(installed, tenant))
    yield
    installed.kubectl("delete", "mutatingadmissionpolicies,mutatingadmissionpolicybindings", POLICY)


def _tried(cluster: Cluster, tenant: Tenant) -> str:
    """What would become of a pod of such a job."""
    safe: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": names.CONTAINER, "image": images.TRAINER_IMAGE, "securityContext": safe}
    metadata = {"name": "meshed", "namespace": tenant.namespace, "labels": {names.LABEL_JOB_NAME: "meshed"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    body = {**pod, "spec": {"containers": [container], "securityContext": security}}
    return cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", input=json.dumps(body))


def containers(job: Job) -> set[tuple[str, ...]]:
    return {tuple(c["name"] for c in pod["spec"]["containers"]) for pod in job.pods()}


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize(
    ("name", "compute", "state", "reason"),
    [
        ("meshed-good", {"cpu": "500m", "memory": "2Gi"}, "Complete", "Succeeded"),
        ("meshed-bad", {"cpu": "500m", "memory": "150Mi"}, "Failed", "HostOutOfMemory"),
    ],
)
def test_the_trainers_container_decides_and_no_pod_stays(
    tenant: Tenant, name: str, compute: Object, state: str, reason: str
) -> None:
    train = tenant.put_rows("meshed.jsonl", sums(30))
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    job = tenant.create(name, train, dataset=sources, compute=compute)
    wait_for("a pod with a sidecar", lambda: containers(job), lambda found: ("mesh-proxy", names.CONTAINER) in found)

    status = tenant.end_of(job)

    assert (status["state"], status["attempts"][0]["reason"]) == (state, reason), message(status)
    wait_for("every pod to go", job.pods, lambda pods: not pods)
