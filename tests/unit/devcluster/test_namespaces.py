"""A cluster starts after another one was killed, and leaves one that runs alone.

The link of a second node is tested, because its other end is in namespaces of the test and not in those of the machine.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import namespaces
from devcluster.namespaces import FIRST, Namespaces, Site
from devcluster.processes import Processes
from devcluster.progress import ClusterError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root: run this test with sudo")
SECOND = Site(1)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Has a first node, which is a network without anything in it, and the process `other` in another network."""
    processes = Processes(tmp_path)
    for name in (FIRST.holder, "other"):
        pid = processes.start(name, ["unshare", "--net", "sleep", "infinity"])
        processes.wait_for(name, lambda pid=pid: _network(pid) != _network(os.getpid()), [name])
    yield processes
    processes.stop_all()


@pytest.fixture
def node(processes: Processes) -> Namespaces:
    """A second node whose link leads to the process `other`: that of an earlier cluster."""
    node = Namespaces(processes, SECOND, Namespaces(processes))
    other = str(processes.running()["other"])
    node._far_ip("link", "add", SECOND.link, "type", "veth", "peer", "name", "host0", "netns", other)
    return node


def _network(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def _links(node: Namespaces) -> str:
    return subprocess.run([*node._far_end(), "ip", "link"], capture_output=True, text=True, check=True).stdout


def test_the_link_of_a_cluster_that_was_killed_is_waited_for(
    processes: Processes, node: Namespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(f"/proc/{processes.running()['other']}/ns/net").open() as network:
        processes.stop("other")
        sleep = time.sleep

        def end(seconds: float) -> None:
            """Ends the network, which has outlived its process, while the node waits."""
            network.close()
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", end)
        node._require_no_link()
        node._far_ip("link", "add", SECOND.link, "type", "veth", "peer", "name", "host0")


def test_the_link_of_a_cluster_that_runs_is_left_alone_and_nothing_is_started(
    processes: Processes, node: Namespaces, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "LINK_SECONDS", 0.2)

    with pytest.raises(ClusterError, match=r"finetune-dev-2 exists, so another local cluster runs on this machine\."):
        node.open(tmp_path / "pause")

    assert SECOND.link in _links(node)
    assert processes.recorded() == [FIRST.holder, "other"]
