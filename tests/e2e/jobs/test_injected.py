"""What webhooks do to pods. A plain sidecar never ends by itself: the trainer's end is the job's all the same. A pod
that cannot start says why in the kubelet's words."""

import json
from collections.abc import Iterator

import pytest

from devcluster import Cluster, images
from finetune_api import names
from finetune_operator.observed import starting
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.kube import Object
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


def mutated(installed: Cluster, tenant: Tenant, prefix: str, patch: str, shows: str) -> Iterator[None]:
    """A policy that patches every pod of the jobs whose names begin with `prefix`; it counts once `shows` is in one."""
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ours = f"object.metadata.?labels[?'{names.LABEL_JOB_NAME}'].orValue('').startsWith('{prefix}')"
    spec = {
        "matchConstraints": {"resourceRules": [pods]},
        "matchConditions": [{"name": "ours", "expression": ours}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
    }
    version = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": prefix}}
    policy = {**version, "kind": "MutatingAdmissionPolicy", "spec": spec}
    binding = {**version, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": prefix}}
    both = {"apiVersion": "v1", "kind": "List", "items": [policy, binding]}
    installed.kubectl("apply", "-f", "-", input=json.dumps(both))
    wait_for("the policy to count", lambda: shows in _tried(installed, tenant, prefix))
    yield
    installed.kubectl("delete", "mutatingadmissionpolicies,mutatingadmissionpolicybindings", prefix)


def _tried(cluster: Cluster, tenant: Tenant, prefix: str) -> str:
    """What would become of a pod of such a job."""
    safe: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": names.CONTAINER, "image": images.TRAINER_IMAGE, "securityContext": safe}
    metadata = {"name": prefix, "namespace": tenant.namespace, "labels": {names.LABEL_JOB_NAME: prefix}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    body = {**pod, "spec": {"containers": [container], "securityContext": security}}
    return cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", input=json.dumps(body))


@pytest.fixture(scope="module")
def mesh(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Puts a sidecar before the trainer in every pod of a job whose name begins with "meshed"."""
    yield from mutated(installed, tenant, "meshed", SIDECAR, "mesh-proxy")


@pytest.fixture
def no_sandbox(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Gives the pods of a job whose name begins with "boxed" a runtime that no node has."""
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nowhere"}}
    installed.kubectl("apply", "-f", "-", input=json.dumps({**runtime, "handler": "nowhere"}))
    patch = '[JSONPatch{op: "add", path: "/spec/runtimeClassName", value: "nowhere"}]'
    yield from mutated(installed, tenant, "boxed", patch, "nowhere")
    installed.kubectl("delete", "runtimeclass", "nowhere")


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
def test_the_trainers_container_decides_the_result_and_no_pod_remains(
    tenant: Tenant, name: str, compute: Object, state: str, reason: str
) -> None:
    train = tenant.put_rows("meshed.jsonl", sums(30))
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    job = tenant.create(name, train, dataset=sources, compute=compute)
    wait_for("a pod with a sidecar", lambda: containers(job), lambda found: ("mesh-proxy", names.CONTAINER) in found)

    status = tenant.end_of(job)

    assert (status["state"], status["attempts"][0]["reason"]) == (state, reason), message(status)
    wait_for("every pod to go", job.pods, lambda pods: not pods)


@pytest.mark.usefixtures("no_sandbox")
def test_a_failed_sandbox_is_reported_with_the_kubelets_message(tenant: Tenant) -> None:
    job = tenant.create("boxed", tenant.put_rows("boxed.jsonl", sums(30)))

    told = wait_for(
        "the kubelet's word",
        lambda: str(job.ready().get("message")),
        lambda said: "cannot start: FailedCreatePodSandBox: " in said,
        timeout=starting.STUCK_AFTER.total_seconds() + 60,
    )

    assert 'no runtime for "nowhere" is configured' in told
    tenant.kube.delete(job.path)
