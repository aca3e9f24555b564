"""The class `Cluster`, which starts and stops the whole cluster."""

import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from devcluster import dns, kueue, namespaces, storage
from devcluster.build import built, built_coredns, built_kueue
from devcluster.control_plane import ControlPlane
from devcluster.kueue import Kueue
from devcluster.namespaces import FIRST, MOST_NODES, NODE_ADDRESS, Namespaces, Site
from devcluster.node import LEASE_SECONDS, Node
from devcluster.outages import Outages
from devcluster.ports import free_ports
from devcluster.prerequisites import require_linux, require_node_tools
from devcluster.processes import Processes
from devcluster.progress import ClusterError, step
from devcluster.storage import S3Keys

DEFAULT_FOLDER = Path(__file__).parents[1] / "build" / "devcluster"


class Cluster:
    """A Kubernetes cluster whose files lie in `folder`; `folder`/logs outlives it.

    `nodes`: from 0 to 4. Without a node there are only etcd, API server and controller-manager, on loopback and free
    ports; this needs no root, and any number may run side by side. With nodes there is one cluster a machine: its
    addresses are fixed. The first node runs the control plane and S3.
    `gpus`: how many each node advertises. `host_mounts=False`: for real images, which bring their own files.
    `api_server_flags`, `controller_flags`: more flags of kube-apiserver and of kube-controller-manager.
    """

    def __init__(
        self,
        folder: Path = DEFAULT_FOLDER,
        nodes: int = 1,
        gpus: int = 1,
        host_mounts: bool = True,
        api_server_flags: tuple[str, ...] = (),
        controller_flags: tuple[str, ...] = (),
    ) -> None:
        if not 0 <= nodes <= MOST_NODES:
            raise ClusterError(f"A local cluster has at most {MOST_NODES} nodes, but {nodes} are wanted.")
        self.folder = folder.absolute()
        self._state = self.folder / "state"
        self._processes = Processes(self.folder)
        self._wanted_nodes = nodes
        self._gpus = gpus
        self._host_mounts = host_mounts
        self._api_server_flags, self._controller_flags = api_server_flags, controller_flags
        self.etcd_endpoint = ""
        """The URL of etcd, for this machine, if this object has started it without a node."""

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with administrator rights."""
        return self._state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """The folder with one log for each component."""
        return self._processes.logs

    @property
    def s3_endpoint(self) -> str:
        """The URL of the S3 server, for this machine and for pods."""
        return f"http://{NODE_ADDRESS}:{storage.PORT}"

    def s3_keys(self, identity: str = "admin") -> S3Keys:
        """Returns the keys of `admin`, which has all permissions, or of `reader`, which cannot write."""
        return storage.read_keys(self._state / "s3.json", identity)

    @property
    def is_up(self) -> bool:
        """Whether every started component is still running and the API server answers."""
        recorded = self._processes.recorded()
        whole = bool(recorded) and set(recorded) == set(self._processes.running())
        return whole and self.kubeconfig.exists() and self._kubectl("get", "--raw", "/readyz").returncode == 0

    def components(self) -> dict[str, int | None]:
        """Returns the process id of every component, or None for a component that ended."""
        running = self._processes.running()
        return {name: running.get(name) for name in self._processes.recorded()}

    def up(self) -> None:
        """Starts the cluster if it is not running. Raises ClusterError with a message and the end of the log."""
        if self.is_up:
            if (running := len(self._sites())) != self._wanted_nodes:
                raise ClusterError(
                    f"The local cluster runs with {running} nodes, not {self._wanted_nodes}. Stop it first."
                )
            return
        require_linux()
        if self._wanted_nodes:
            require_node_tools()
        parts = built()
        if self._wanted_nodes:
            built_coredns()
        self.down()  # removes leftovers of an interrupted `up` or a crash
        self._processes.delete_logs()
        self._state.mkdir(parents=True)
        try:
            if self._wanted_nodes:
                self._up_with_nodes(parts)
            else:
                self._up_without_node(parts)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stops the cluster if it is running, and deletes everything except the logs."""
        sites = self._sites()
        self._processes.stop_all(first=[site.holder for site in reversed(sites)])
        if sites:
            namespaces.clean_up()
        shutil.rmtree(self._state, ignore_errors=True)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Returns the output of `kubectl ARGUMENTS`. Raises ClusterError with kubectl's message."""
        return _output(self._kubectl(*arguments, input=input))

    def helm(self, *arguments: str) -> str:
        """Returns the output of `helm ARGUMENTS`. Raises ClusterError with helm's message."""
        command = [str(built() / "kube"), "helm", "--kubeconfig", str(self.kubeconfig), *arguments]
        return _output(subprocess.run(command, capture_output=True, text=True))

    def start_kueue(self) -> None:
        """Starts Kueue in the running cluster, if it does not run. The first time, this builds it (about 3 minutes)."""
        if not self._wanted_nodes:
            raise ClusterError("Kueue needs a cluster with a node: its webhooks are reached through a Service.")
        parts = built_kueue()
        if kueue.NAME not in self._processes.running():
            with step("starting Kueue"):
                self._kueue(parts).start()

    def stop_kueue(self) -> None:
        """Stops Kueue and deletes its webhooks and all its objects. Raises ClusterError if a queue is left."""
        self._kueue(built_kueue()).stop()

    def _kueue(self, parts: Path) -> Kueue:
        return Kueue(self._plane(), self._processes, self.kubectl, parts)

    def load_image(self, archive: Path) -> None:
        """Loads the images of an OCI or Docker archive into every node."""
        for node in self.nodes:
            node.load_image(archive)

    @property
    def nodes(self) -> list[Node]:
        """The nodes, the first one first, also those that are powered off."""
        plane, first = self._plane(), Namespaces(self._processes)
        return [self._node(plane, Site(index), first) for index in range(self._wanted_nodes)]

    @property
    def pause(self) -> Path:
        """The program that keeps namespaces open, also those of pods."""
        return built() / "pause"

    @property
    def outages(self) -> Outages:
        """What can break in this cluster, and what mends it."""
        return Outages(self._processes, self._plane(), {node.site.name: node for node in self.nodes}, self.pause)

    def _kubectl(self, *arguments: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(built() / "kube"), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=input)

    def _up_without_node(self, parts: Path) -> None:
        port, client, peer = free_ports(3)
        self.etcd_endpoint = f"http://127.0.0.1:{client}"
        plane = ControlPlane(
            folder=self._state,
            kube=parts / "kube",
            address="127.0.0.1",
            port=port,
            etcd_ports=(client, peer),
            api_server_flags=self._api_server_flags,
            controller_flags=self._controller_flags,
        )
        with step("starting etcd, API server and controller-manager"):
            plane.write_files()
            plane.launch(self._processes)
            plane.finish(self._processes)
            self._wait_for_default_account()

    def _up_with_nodes(self, parts: Path) -> None:
        with step("opening the nodes' networks"):
            first = Namespaces(self._processes)
            first.open(parts / "pause")
            plane = self._plane()
            nodes = [self._node(plane, Site(index), first) for index in range(self._wanted_nodes)]
            for node in nodes[1:]:
                node.namespaces.open(parts / "pause")
        with step("starting S3, containerd and the control plane"):
            plane.write_files()
            plane.launch(self._processes)
            self._start_storage(plane)
            for node in nodes:
                node.start_containerd(self._processes, parts / "pause")
            plane.finish(self._processes)
        with step("starting scheduler, kubelet and proxy"):
            plane.start_scheduler(self._processes)
            dns.start(plane, self._processes, built_coredns())
            for node in nodes:
                node.start(self._processes)
            self._wait_for_default_account()
            self._processes.wait_for("S3", self._s3_answers, ["seaweedfs"])
            self._processes.wait_for("the DNS", dns.answers, [dns.NAME])

    def _sites(self) -> list[Site]:
        """Returns the nodes that were started and not stopped."""
        recorded = self._processes.recorded()
        return [site for site in map(Site, range(MOST_NODES)) if site.holder in recorded]

    def _plane(self) -> ControlPlane:
        """Returns the control plane of a cluster with nodes, which runs on the first one."""
        others = tuple(Site(index).address for index in range(1, MOST_NODES))
        return ControlPlane(
            folder=self._state,
            kube=built() / "kube",
            address=NODE_ADDRESS,
            port=6443,
            etcd_ports=(2379, 2380),
            prefix=tuple(Namespaces(self._processes).enter()),
            api_server_flags=self._api_server_flags,
            controller_flags=self._controller_flags,
            more_addresses=others,
            lost_after_seconds=LEASE_SECONDS if self._wanted_nodes > 1 else None,
        )

    def _node(self, plane: ControlPlane, site: Site, first: Namespaces) -> Node:
        own = first if site == FIRST else Namespaces(self._processes, site, first)
        return Node(plane, own, self._gpus, self._host_mounts, is_alone=self._wanted_nodes == 1)

    def _start_storage(self, plane: ControlPlane) -> None:
        storage.write_config(self._state / "s3.json")
        command = storage.command(self._state / "s3", self._state / "s3.json", NODE_ADDRESS)
        self._processes.start("seaweedfs", [*plane.prefix, *command])

    def _s3_answers(self) -> bool:
        try:
            urllib.request.urlopen(self.s3_endpoint, timeout=2)
        except urllib.error.HTTPError as error:
            return error.code == 403  # The server answers and requires a signature.
        except OSError:
            return False
        return True

    def _wait_for_default_account(self) -> None:
        """Waits for the default ServiceAccount. Without this account, the API server rejects pods."""

        def there() -> bool:
            return self._kubectl("get", "serviceaccount", "default").returncode == 0

        self._processes.wait_for("the controller-manager", there, ["kube-apiserver", "kube-controller-manager"])

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _output(result: "subprocess.CompletedProcess[str]") -> str:
    if result.returncode:
        raise ClusterError(result.stderr.strip() or result.stdout.strip())
    return result.stdout
