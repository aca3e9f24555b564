"""The API server with the chart's CRDs, roles and policies, the operator as a process, and a stand-in for a node.

The operator runs with the rights of its own ServiceAccount and the pods with those of the trainer's, so a missing
right shows here.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devcluster import Cluster
from finetune_api import names
from finetune_trainer import status_writer
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.kubelet import Kubelet
from tests.integration.manifests import FAILED
from tests.integration.operator_process import OperatorProcess
from tests.integration.tap import Tap
from tests.integration.waiting import wait_for

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
SYSTEM = "finetune-system"
OPERATOR_ACCOUNT = "integration-finetune-operator"
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


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """What the chart installs but the Deployment (there is no node to run it) and the default profile."""
    rendered = control_plane.helm("template", "integration", str(CHART), "--include-crds", "--namespace", SYSTEM)
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


@pytest.fixture(scope="session")
def tap(kube: Kube) -> Iterator[Tap]:
    """Sees every request of the operator."""
    tap = Tap(kube.server, kube.authority)
    yield tap
    tap.close()


@pytest.fixture(scope="session")
def _operator(installed: Cluster, kube: Kube, tap: Tap) -> Iterator[OperatorProcess]:
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{OPERATOR_ACCOUNT}/token"
    token = kube.create(path, {"spec": {"audiences": [], "expirationSeconds": 7200}})["status"]["token"]
    process = OperatorProcess(ROOT / "build" / "test-operator", tap.address, token)
    yield process
    process.stop()


@pytest.fixture
def operator(_operator: OperatorProcess, tap: Tap) -> OperatorProcess:
    """A running operator, the same one for all tests that leave it alive."""
    tap.mend()
    _operator.start()
    return _operator


@pytest.fixture(scope="session")
def _kubelet(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    with pytest.MonkeyPatch.context() as patch:
        # A pod insists for minutes while the API server is away; here it never is.
        patch.setattr(status_writer, "RESULT_PATIENCE_SECONDS", 5.0)
        yield Kubelet(kube, tmp_path_factory.mktemp("pods"))


@pytest.fixture
def kubelet(_kubelet: Kubelet) -> Kubelet:
    """A node that is well."""
    _kubelet.heartbeat()
    return _kubelet


@pytest.fixture(scope="session")
def doomed(kube: Kube, _operator: OperatorProcess, _kubelet: Kubelet) -> dict[str, Job]:
    """Jobs that end Failed once a grace is over, by name: they wait it out while other tests run. `image-STEP`: the
    image of that step cannot be pulled."""
    _operator.start()
    _kubelet.heartbeat()
    namespace = make_namespace(kube)
    jobs = {name: Job.create(kube, namespace, yaml.safe_load(text)) for name, text in FAILED.items()}
    images = {f"image-{step}": step for step in (PREFLIGHT, ATTEMPT)}
    jobs |= {name: Job.create(kube, namespace, manifest(name)) for name in images}
    _kubelet.pod_of(namespace, jobs[f"image-{ATTEMPT}"].child(PREFLIGHT)).validates()
    for name, step in images.items():
        pod = _kubelet.pod_of(namespace, jobs[name].child(step))
        pod.cannot_start("ImagePullBackOff", 'Back-off pulling image "registry.example/trainer"')
    return jobs
