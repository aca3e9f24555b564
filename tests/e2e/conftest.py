"""The whole cluster with the operator from its chart, S3 with a tiny model in it, and a tenant's namespace."""

from typing import Any

import pytest

from devcluster import Cluster
from tests.e2e.setting import install_operator, make_tenant, put_tiny_model, s3_client
from tests.e2e.tenant import Tenant


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The operator, running as the Deployment the chart makes."""
    install_operator(cluster)
    return cluster


@pytest.fixture(scope="session")
def s3(cluster: Cluster) -> Any:
    """A client that may do everything, and every bucket."""
    return s3_client(cluster)


@pytest.fixture(scope="session")
def tiny_model(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a randomly initialised Llama with a chat template."""
    return put_tiny_model(s3, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tenant(installed: Cluster, s3: Any, tiny_model: str) -> Tenant:
    """A team's namespace that enforces the restricted Pod Security Standard, with the team's Secrets."""
    return make_tenant(installed, s3, tiny_model, installed.s3_endpoint)
