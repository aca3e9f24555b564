"""Kueue in the whole cluster."""

from collections.abc import Iterator

import pytest

from devcluster import Cluster
from tests.e2e.queues.queue import Queue, open_queue
from tests.e2e.setting import install_operator
from tests.e2e.tenant import Tenant


@pytest.fixture(scope="module")
def queue(tenant: Tenant, installed: Cluster) -> Iterator[Queue]:
    install_operator(installed)  # the demo's test has installed it without Kueue
    with open_queue(installed, tenant) as queue:
        yield queue
