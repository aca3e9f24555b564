"""The API server with the chart's CRDs, roles and policies."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devcluster import Cluster
from finetune_api import names
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
SYSTEM = "finetune-system"
PROFILE: Object = {
    "apiVersion": names.API_VERSION,
    "kind": names.PROFILE_KIND,
    "metadata": {"name": "default"},
    "spec": {
        "trainer": {"image": "registry.example/trainer@sha256:feed"},
        "gpuTypes": [
            {
                "name": "h100",
                "nodeSelector": {"gpu.example/model": "h100"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            }
        ],
        "storages": [{"buckets": ["acme-*"], "endpoint": "https://s3.example", "credentialsSecretName": "s3-keys"}],
    },
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need the API server. First, because pytest selects by marker in its own hook."""
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.control_plane)


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """What the chart installs but the Deployment (there is no node to run it) and the default profile."""
    queues = ("--set", "kueue.enabled=true")  # the operator of the tests of queues may read Workloads
    rendered = control_plane.helm(
        "template", "integration", str(CHART), "--include-crds", "--namespace", SYSTEM, *queues
    )
    objects = [o for o in yaml.safe_load_all(rendered) if o and o["kind"] not in ("Deployment", names.PROFILE_KIND)]
    objects.insert(0, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    control_plane.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--field-manager", "tests", "-f", "-"),
        input=yaml.safe_dump_all(objects),
    )
    kube = Kube(control_plane.kubeconfig)
    for plural in (names.JOBS, names.PROFILES):
        wait_for(f"{plural} to be served", lambda plural=plural: is_established(kube, plural))
    return control_plane


def is_established(kube: Kube, plural: str) -> bool:
    """Whether the API server serves this resource. `kubectl wait` fails while a definition has no conditions."""
    definition = kube.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{names.GROUP}")
    conditions = definition.get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


@pytest.fixture(scope="session")
def kube(installed: Cluster) -> Kube:
    """The API server, as its administrator, with the profile `default`."""
    kube = Kube(installed.kubeconfig)
    kube.apply(f"{PROFILES}/default", PROFILE)
    return kube


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A tenant's, new for each test, that enforces the restricted Pod Security Standard."""
    name = make_namespace(kube)
    yield name
    kube.delete(f"/api/v1/namespaces/{name}")


def make_namespace(kube: Kube) -> str:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "tenant-", "labels": labels}}
    return str(kube.create("/api/v1/namespaces", body)["metadata"]["name"])
