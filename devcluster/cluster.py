"""The class `Cluster`, which starts and stops the whole cluster."""

import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from devcluster import kueue, namespaces, storage
from devcluster.build import built, built_kueue
from devcluster.control_plane import ControlPlane, free_ports
from devcluster.kueue import Kueue
from devcluster.namespaces import NODE_ADDRESS, Namespaces
from devcluster.node import Node
from devcluster.prerequisites import require_linux, require_node_tools
from devcluster.processes import Processes
from devcluster.progress import ClusterError, step
from devcluster.storage import S3Keys

DEFAULT_FOLDER = Path(__file__).parents[1] / "build" / "devcluster"


class Cluster:
    """A Kubernetes cluster whose files lie in `folder`; `folder`/logs outlives it.

    `node=False`: only etcd, API server and controller-manager, on loopback and free ports; needs no root, and any
    number may run side by side. With a node there is one cluster a machine: its addresses are fixed.
    `gpus`: how many the node advertises. `host_mounts=False`: for real images, which bring their own files.
    `api_server_flags`, `controller_flags`: more flags of kube-apiserver and of kube-controller-manager.
    """

    def __init__(
        self,
        folder: Path = DEFAULT_FOLDER,
        node: bool = True,
        gpus: int = 1,
        host_mounts: bool = True,
        api_server_flags: tuple[str, ...] = (),
        controller_flags: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder.absolute()
        self._state = self.folder / "state"
        self._processes = Processes(self.folder)
        self._with_node = node
        self._gpus = gpus
        self._host_mounts = host_mounts
        self._flags = {"api_server_flags": api_server_flags, "controller_flags": controller_flags}
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
            return
        require_linux()
        if self._with_node:
            require_node_tools()
        parts = built()
        self.down()  # removes leftovers of an interrupted `up` or a crash
        self._state.mkdir(parents=True)
        try:
            if self._with_node:
                self._up_with_node(parts)
            else:
                self._up_without_node(parts)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stops the cluster if it is running, and deletes everything except the logs."""
        had_node = namespaces.HOLDER in self._processes.recorded()
        self._processes.stop_all(first=namespaces.HOLDER)
        if had_node:
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
        if not self._with_node:
            raise ClusterError("Kueue needs a cluster with a node: its webhooks are reached through a Service.")
        parts = built_kueue()
        if kueue.NAME not in self._processes.running():
            with step("starting Kueue"):
                self._kueue(parts).start()

    def stop_kueue(self) -> None:
        """Stops Kueue and deletes its webhooks and all its objects. Raises ClusterError if kubectl cannot."""
        self._kueue(built_kueue()).stop()

    def _kueue(self, parts: Path) -> Kueue:
        return Kueue(self._node(built()).plane, self._processes, self.kubectl, parts)

    def load_image(self, archive: Path) -> None:
        """Loads the images of an OCI or Docker archive into the node."""
        self._node(built()).load_image(archive)

    def _kubectl(self, *arguments: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(built() / "kube"), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=input)

    def _up_without_node(self, parts: Path) -> None:
        port, client, peer = free_ports(3)
        self.etcd_endpoint = f"http://127.0.0.1:{client}"
        plane = ControlPlane(self._state, parts / "kube", "127.0.0.1", port, (client, peer), **self._flags)
        with step("starting etcd, API server and controller-manager"):
            plane.write_files()
            plane.launch(self._processes)
            plane.finish(self._processes)
            self._wait_for_default_account()

    def _up_with_node(self, parts: Path) -> None:
        with step("opening the node's network"):
            Namespaces(self._processes).open(parts / "pause")
        node = self._node(parts)
        plane = node.plane
        with step("starting S3, containerd and the control plane"):
            plane.write_files()
            plane.launch(self._processes)
            self._start_storage(plane)
            node.start_containerd(self._processes, parts / "pause")
            plane.finish(self._processes)
        with step("starting kubelet, scheduler and proxy"):
            node.start(self._processes)
            self._wait_for_default_account()
            self._processes.wait_for("S3", self._s3_answers, ["seaweedfs"])

    def _node(self, parts: Path) -> Node:
        prefix = tuple(Namespaces(self._processes).enter())
        plane = ControlPlane(self._state, parts / "kube", NODE_ADDRESS, 6443, (2379, 2380), prefix, **self._flags)
        return Node(plane, self._gpus, self._host_mounts)

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
