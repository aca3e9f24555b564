"""Changes pods before they are made, as webhooks of meshes and platforms do."""

import json
from collections.abc import Iterator

from devcluster import Cluster, ClusterError, images
from finetune_api import names
from tests.e2e.tenant import Tenant
from tests.integration.kube import Object
from tests.integration.waiting import wait_for


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
    """What would become of a pod of such a job: the pod, or why it is refused."""
    safe: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": names.CONTAINER, "image": images.TRAINER_IMAGE, "securityContext": safe}
    metadata = {"name": prefix, "namespace": tenant.namespace, "labels": {names.LABEL_JOB_NAME: prefix}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    body = {**pod, "spec": {"containers": [container], "securityContext": security}}
    try:
        return cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", input=json.dumps(body))
    except ClusterError as refusal:
        return str(refusal)
