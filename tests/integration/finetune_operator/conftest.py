"""The operator as a process, and a stand-in for a node.

The operator runs with the rights of its own ServiceAccount and the pods with those of the trainer's, so a missing
right shows here.
"""

from collections.abc import Iterator

import pytest
import yaml

from devcluster import Cluster
from finetune_trainer.pod.status import status_writer
from tests.integration.api_proxy import ApiProxy
from tests.integration.conftest import ROOT, SYSTEM, make_namespace
from tests.integration.finetune_operator.kubelet import Kubelet, living_node
from tests.integration.finetune_operator.manifests import FAILED
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import Kube

OPERATOR_ACCOUNT = "integration-finetune-operator"


@pytest.fixture(scope="session")
def proxy(kube: Kube) -> Iterator[ApiProxy]:
    """Sees every request of the operator."""
    proxy = ApiProxy(kube.server, kube.authority)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def token(installed: Cluster, kube: Kube) -> str:
    """Of the operator's ServiceAccount."""
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{OPERATOR_ACCOUNT}/token"
    return str(kube.create(path, {"spec": {"audiences": [], "expirationSeconds": 7200}})["status"]["token"])


@pytest.fixture(scope="session")
def _operator(proxy: ApiProxy, token: str) -> Iterator[OperatorProcess]:
    process = OperatorProcess(ROOT / "build" / "test-operator", proxy.address, token)
    yield process
    process.stop()


@pytest.fixture
def operator(_operator: OperatorProcess, proxy: ApiProxy) -> OperatorProcess:
    """An operator that watches, the same one for all tests that leave it alive."""
    proxy.mend()
    _operator.start()
    _operator.wait_until_ready()
    return _operator


@pytest.fixture(scope="session")
def kubelet(installed: Cluster, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    with pytest.MonkeyPatch.context() as patch:
        # A pod insists for minutes while the API server is away; here it never is.
        patch.setattr(status_writer, "RESULT_PATIENCE_SECONDS", 5.0)
        with living_node(installed.kubeconfig):
            yield Kubelet(kube, tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="session")
def doomed(kube: Kube, _operator: OperatorProcess, kubelet: Kubelet) -> dict[str, Job]:
    """Jobs that end Failed once a grace is over, by name: they wait it out while other tests run. `image-STEP`: the
    image of that step cannot be pulled."""
    _operator.start()
    namespace = make_namespace(kube)
    jobs = {name: Job.create(kube, namespace, yaml.safe_load(text)) for name, text in FAILED.items()}
    images = {f"image-{step}": step for step in (PREFLIGHT, ATTEMPT)}
    jobs |= {name: Job.create(kube, namespace, manifest(name)) for name in images}
    kubelet.pod_of(namespace, jobs[f"image-{ATTEMPT}"].child(PREFLIGHT)).validates()
    for name, step in images.items():
        pod = kubelet.pod_of(namespace, jobs[name].child(step))
        pod.cannot_start("ImagePullBackOff", 'Back-off pulling image "registry.example/trainer"')
    return jobs
