"""Breaks parts of a running cluster, and mends them: processes of the control plane, and whole nodes."""

import signal
from dataclasses import dataclass
from pathlib import Path

from devcluster.control_plane import ControlPlane
from devcluster.node import Node
from devcluster.processes import Processes


@dataclass(frozen=True)
class Outages:
    """The outages of one cluster. Names of components are those of `Cluster.components`."""

    _processes: Processes
    _plane: ControlPlane
    _nodes: dict[str, Node]
    _pause: Path

    def restart_api_server(self) -> None:
        """Kills the API server, starts it again, and waits until it is ready."""
        self._processes.send("kube-apiserver", signal.SIGKILL)
        self._processes.stop("kube-apiserver")
        self._plane.start_api_server(self._processes)
        self._processes.wait_for("the API server", self._plane.is_ready, ["etcd", "kube-apiserver"])

    def pause(self, component: str) -> None:
        """Stops a component from running until `resume`. Its connections stay open, and nobody answers."""
        self._processes.send(component, signal.SIGSTOP)

    def resume(self, component: str) -> None:
        """Lets a paused component run again."""
        self._processes.send(component, signal.SIGCONT)

    def disconnect(self, node: str) -> None:
        """Takes a node off the network. Its pods go on running and reach nothing."""
        self._nodes[node].namespaces.disconnect()

    def connect(self, node: str) -> None:
        """Puts a node back on the network, and waits until it is Ready."""
        self._nodes[node].namespaces.connect()
        self._nodes[node].wait_until_ready(self._processes)

    def power_off(self, node: str) -> None:
        """Ends everything that runs on a node at once. The cluster finds out by the node's silence."""
        self._nodes[node].power_off(self._processes)

    def power_on(self, node: str) -> None:
        """Starts a node again with the files it had, and waits until it is Ready."""
        self._nodes[node].power_on(self._processes, self._pause)
