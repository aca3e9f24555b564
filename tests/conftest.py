"""The clusters that tests share. `tests/unit` needs neither, `tests/integration` the first, `tests/e2e` the second."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster

BUILD = Path(__file__).parents[1] / "build"


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """A real API server and controller-manager on loopback; nothing runs pods."""
    with Cluster(BUILD / "test-control-plane", node=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A whole cluster with one node, one GPU advertised and S3; its logs stay in build/test-cluster/logs."""
    with Cluster(BUILD / "test-cluster") as cluster:
        yield cluster
