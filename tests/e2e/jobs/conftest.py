"""Jobs that need nothing of their own in the cluster run beside each other: some are validated while two train.

A module with such jobs has the context manager `started(tenant, cluster)`, which creates them and gives them by name.
Its tests get them from the fixture `jobs`. The jobs of all such modules of a run are created when the first of these
tests begins."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from devcluster import Cluster
from devcluster.namespaces import FIRST
from tests.e2e.tenant import Tenant
from tests.integration.jobs import GPU, Job

HERE = Path(__file__).parent
STARTED = "started"


class Begun(NamedTuple):
    """The jobs of one module, and what ends when its tests have ended."""

    jobs: dict[str, Job]
    ends: ExitStack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets the tests of these jobs come first in this folder. Other jobs would have to wait for the GPU."""
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(HERE)]
    ordered = sorted((items[place] for place in places), key=lambda item: not begins(item))
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def begins(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and hasattr(item.module, STARTED)


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest, tenant: Tenant, installed: Cluster) -> Iterator[dict[str, Begun]]:
    """The jobs of all these modules that the run has, by the name of the module."""
    modules = {item.module.__name__: item.module for item in request.session.items if begins(item)}  # type: ignore[attr-defined]
    with ExitStack() as left:
        found = {}
        for name, module in modules.items():
            ends = left.enter_context(ExitStack())
            found[name] = Begun(ends.enter_context(module.started(tenant, installed)), ends)
        yield found


@pytest.fixture(scope="module")
def jobs(request: pytest.FixtureRequest, begun: dict[str, Begun]) -> Iterator[dict[str, Job]]:
    """The jobs of this module, by name."""
    mine = begun[request.module.__name__]
    yield mine.jobs
    mine.ends.close()


@pytest.fixture
def one_gpu(installed: Cluster) -> Iterator[None]:
    """Takes one of the node's two GPUs away for a test. No job may train when the test begins."""
    advertise_gpus(installed, 1)
    yield
    advertise_gpus(installed, 2)


def advertise_gpus(cluster: Cluster, count: int) -> None:
    """Changes how many GPUs the scheduler sees. The kubelet would copy the capacity only after ten seconds."""
    name = GPU.replace("/", "~1")
    patch = [
        {"op": "add", "path": f"/status/{part}/{name}", "value": str(count)} for part in ("capacity", "allocatable")
    ]
    change = ["--subresource=status", "--type=json", f"--patch={json.dumps(patch)}"]
    cluster.kubectl("patch", "node", FIRST.name, *change)
