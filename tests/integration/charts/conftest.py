"""The chart, installed with Helm on a real API server and controller-manager. There is no node: pods stay pending."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client, config

from devcluster import Cluster
from finetune_api import names

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "finetune-operator"
RELEASE = "finetune-operator"

Helm = Callable[..., str]


@pytest.fixture(scope="package")
def control_plane() -> Iterator[Cluster]:
    """One of its own: what is installed, upgraded and broken here is cluster-wide."""
    with Cluster(ROOT / "build" / "test-charts", nodes=0) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def helm(control_plane: Cluster) -> Helm:
    """Runs helm and returns what it printed; a failure raises ClusterError with what it said."""
    return control_plane.helm


@pytest.fixture(scope="package")
def api(control_plane: Cluster) -> client.ApiClient:
    """The API server, as its administrator."""
    return config.new_client_from_config(str(control_plane.kubeconfig))


@pytest.fixture(scope="package")
def installed(helm: Helm, api: client.ApiClient) -> str:
    """The chart, in a namespace that enforces the restricted Pod Security Standard. Returns the namespace."""
    namespace = _make_namespace(api, "chart-", {"pod-security.kubernetes.io/enforce": "restricted"})
    helm("install", RELEASE, str(CHART), "--namespace", namespace)
    return namespace


@pytest.fixture(scope="module")
def namespace(installed: str, api: client.ApiClient) -> str:
    return _make_namespace(api, "tenant-", {})


@dataclass(frozen=True)
class Shard:
    """A release beside `installed`, for its own namespaces. `account` is the operator's, in the namespace `system`."""

    release: str
    account: str
    system: str
    namespaces: tuple[str, ...]

    def upgrade(self, helm: Helm, namespaces: tuple[str, ...]) -> None:
        """Gives the release other namespaces."""
        values = f"watchNamespaces={{{','.join(namespaces)}}}"
        helm("upgrade", self.release, str(CHART), "--namespace", self.system, "--reuse-values", "--set", values)


ShardOf = Callable[..., Shard]


@pytest.fixture(scope="package")
def shard_of(helm: Helm, installed: str, api: client.ApiClient) -> ShardOf:
    """Installs a release of this name for new namespaces of these names."""

    def install(release: str, *tenants: str) -> Shard:
        namespaces = tuple(_make_namespace(api, f"{release}-{tenant}-", {}) for tenant in tenants)
        system = f"{release}-system"
        values = f"clusterResources.create=false,watchNamespaces={{{','.join(namespaces)}}}"
        helm("install", release, str(CHART), "--namespace", system, "--create-namespace", "--set", values)
        return Shard(release, f"{release}-finetune-operator", system, namespaces)

    return install


@pytest.fixture(scope="package")
def shard(shard_of: ShardOf) -> Shard:
    return shard_of("shard", "one", "two")


@pytest.fixture(scope="module")
def trainer_account(namespace: str, api: client.ApiClient) -> Callable[[str], str]:
    """Makes a ServiceAccount in the tenant's namespace and binds it to the trainers' role, as the operator does."""

    def make(name: str) -> str:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": names.TRAINER_SERVICE_ACCOUNT}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        client.CoreV1Api(api).create_namespaced_service_account(namespace, {"metadata": {"name": name}})
        client.RbacAuthorizationV1Api(api).create_namespaced_role_binding(
            namespace, {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        )
        return name

    return make


@pytest.fixture(scope="module")
def tenant(namespace: str, trainer_account: Callable[[str], str]) -> str:
    """A tenant's namespace in which a FineTuneJob has run before."""
    trainer_account(names.TRAINER_SERVICE_ACCOUNT)
    return namespace


def _make_namespace(api: client.ApiClient, prefix: str, labels: dict[str, str]) -> str:
    metadata = {"generateName": prefix, "labels": labels}
    return str(client.CoreV1Api(api).create_namespace({"metadata": metadata}).metadata.name)


def api_with(api: client.ApiClient, token: str) -> client.ApiClient:
    """The API server, as the user of this token."""
    configuration = client.Configuration()
    configuration.host = api.configuration.host
    configuration.ssl_ca_cert = api.configuration.ssl_ca_cert
    configuration.api_key = {"BearerToken": f"Bearer {token}"}
    return client.ApiClient(configuration)


def token_of(account: str, namespace: str, api: client.ApiClient) -> str:
    """A token that no pod holds."""
    answer = client.CoreV1Api(api).create_namespaced_service_account_token(
        account, namespace, {"spec": {"audiences": []}}
    )
    return str(answer.status.token)
