"""The clusters that tests share. `tests/unit` needs neither, `tests/integration` the first, `tests/e2e` the second."""

import socket
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from devcluster import Cluster, namespaces

# How fast a busy machine is says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

BUILD = Path(__file__).parents[1] / "build"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as thorough the variants of a test that its mark `thorough_for` names by their ids, which may have
    wildcards. First, because pytest selects by marker in its own hook."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        patterns = [pattern for mark in item.iter_markers("thorough_for") for pattern in mark.args]
        if any(fnmatchcase(item.callspec.id, pattern) for pattern in patterns):
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """A real API server and controller-manager on loopback; nothing runs pods."""
    with Cluster(BUILD / "test-control-plane", nodes=0) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A whole cluster with S3 and one node, which advertises two GPUs; its logs stay in build/test-cluster/logs."""
    with Cluster(BUILD / "test-cluster", gpus=2) as cluster:
        yield cluster
    assert leftovers(cluster) == []


def leftovers(cluster: Cluster) -> list[str]:
    """What a cluster that was taken down has left on the machine."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    processes = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [
        *(mount for mount in mounts if mount.startswith(str(cluster.folder))),
        *(command for command in processes if str(cluster.folder / "state") in command),
        *(name for _, name in socket.if_nameindex() if name == namespaces.LINK),
        *map(str, Path("/sys/fs/cgroup").glob("**/kubepods")),
        *(path.name for path in cluster.folder.iterdir() if path.name != "logs"),
    ]
