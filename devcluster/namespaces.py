"""The network, mount and process namespaces of each node, separate from the machine's.

The networks have no route out: what runs in them can reach the nodes and, over one link, the machine's end of that
link. The first node is linked to the machine. Every other node is linked to the first node.
Ending the process that holds the namespaces open ends everything in them and undoes every mount, bridge and rule.
"""

import ctypes
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devcluster.processes import Processes
from devcluster.progress import ClusterError

LINK = "finetune-dev"
"""Name of the link between the machine and the first node, at the machine's end."""
POD_RANGE = "10.88.0.0/16"
"""The addresses of all pods. Each node has a quarter of them."""
SERVICE_RANGE = "10.87.0.0/24"
SERVICE_ADDRESS = "10.87.0.1"
"""The address of the API server's Service: the first address of the range."""
MOST_NODES = 4
LINK_SECONDS: float = 10
"""How long the kernel may take to delete the link of namespaces that have ended."""
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Site:
    """The names and addresses of one node. `index`: 0 for the first node, which also runs the control plane and S3."""

    index: int

    @property
    def suffix(self) -> str:
        """What the names of this node's processes and files end with: nothing, "-2", "-3" or "-4"."""
        return f"-{self.index + 1}" if self.index else ""

    @property
    def name(self) -> str:
        """The name of the Kubernetes Node."""
        return f"node{self.suffix}"

    @property
    def holder(self) -> str:
        """The name of the process that keeps the namespaces open."""
        return f"namespaces{self.suffix}"

    @property
    def address(self) -> str:
        """The node's address."""
        return f"10.89.{self.index}.2"

    @property
    def far_address(self) -> str:
        """The address of the other end of this node's link: the machine's, or the first node's."""
        return f"10.89.{self.index}.1"

    @property
    def link(self) -> str:
        """The name of this node's link at its other end."""
        return f"{LINK}{self.suffix}"

    @property
    def pod_range(self) -> str:
        return f"10.88.{64 * self.index}.0/18"

    @property
    def bridge_address(self) -> str:
        return f"10.88.{64 * self.index}.1"

    @property
    def cgroup(self) -> str:
        """The cgroup of this node's pods. Two kubelets with one cgroup would end each other's pods."""
        return f"/finetune{self.suffix}" if self.index else "/"


FIRST = Site(0)
NODE_ADDRESS = FIRST.address
"""The address of the first node, the API server and S3, for the machine and for pods."""

_SETUP = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
ip link add pods0 type bridge
ip addr add {bridge}/18 dev pods0
ip link set pods0 up
ip route add {services} dev pods0
echo 1 > /proc/sys/net/ipv4/ip_forward
exec "$0"
"""


class Namespaces:
    """The namespaces of one node. `open` creates them, and commands of the node are started through `enter`.

    `first`: the namespaces of the first node, for every other node."""

    def __init__(self, processes: Processes, site: Site = FIRST, first: "Namespaces | None" = None) -> None:
        self.site = site
        self._processes = processes
        self._first = first
        self._pid = processes.running().get(site.holder, 0)

    def open(self, pause: Path) -> None:
        """Creates the namespaces and the link to them. The program `pause` keeps the namespaces open.

        Raises ClusterError if the machine has a link of another cluster. Nothing is started then."""
        self._require_no_link()
        site = self.site
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        setup = _SETUP.format(bridge=site.bridge_address, services=SERVICE_RANGE)
        parent = self._processes.start(site.holder, [*unshare, "sh", "-c", setup, str(pause)])
        self._processes.wait_for("the node's network", lambda: self._held_by(parent, pause.name), [site.holder], 10)
        self._processes.adopt(site.holder, self._pid)
        self._far_ip("link", "add", site.link, "type", "veth", "peer", "name", "host0", "netns", str(self._pid))
        self._far_ip("address", "add", f"{site.far_address}/30", "dev", site.link)
        self._ip("address", "add", f"{site.address}/30", "dev", "host0")
        self._ip("link", "set", "host0", "up")
        self.connect()
        if self._first is not None:
            for others in (f"{NODE_ADDRESS}/32", POD_RANGE):
                self._ip("route", "add", others, "via", site.far_address)

    def connect(self) -> None:
        """Takes the link into service."""
        self._far_ip("link", "set", self.site.link, "up")
        if self._first is not None:
            # Without `src`, requests to a pod would come from an address that pods have no route to.
            route = [self.site.pod_range, "via", self.site.address, "src", NODE_ADDRESS]
            self._far_ip("route", "replace", *route)

    def disconnect(self) -> None:
        """Takes the link out of service. What runs on the node goes on, and nobody else reaches it."""
        self._far_ip("link", "set", self.site.link, "down")

    def remove_link(self) -> None:
        """Removes the other end of the link after the namespaces have ended. The kernel would do this later."""
        with suppress(ClusterError):
            self._far_ip("link", "delete", self.site.link)

    def enter(self) -> list[str]:
        """Returns the words before a command that run the command on the node."""
        return ["nsenter", "--target", str(self._pid), "--mount", "--net", "--pid", "--"]

    def listen(self, port: int) -> socket.socket:
        """Returns a socket of this process that listens at the node's address, for pods."""
        with ThreadPoolExecutor(1) as pool:  # setns changes the thread that calls it, and no other
            return pool.submit(self._listen, port).result()

    def _listen(self, port: int) -> socket.socket:
        with Path(f"/proc/{self._pid}/ns/net").open() as network:
            # Python has os.setns from version 3.12 on.
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                raise ClusterError(f"Entering the node's network failed: {os.strerror(ctypes.get_errno())}.")
        return socket.create_server((self.site.address, port), backlog=128)

    def _require_no_link(self) -> None:
        """Waits for the end of a link of this name. The kernel deletes the link of a cluster that was killed in the
        background, up to some seconds later. A link that stays belongs to a cluster that runs, so it is not deleted.

        Raises ClusterError if the link stays."""
        deadline = time.monotonic() + LINK_SECONDS
        show = [*self._far_end(), "ip", "link", "show", self.site.link]
        while subprocess.run(show, capture_output=True).returncode == 0:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"The network link {self.site.link} exists, so another local cluster runs on this machine. Only "
                    "one can run: stop it first."
                )
            time.sleep(0.05)

    def _ip(self, *arguments: str) -> None:
        _run([*self.enter(), "ip", *arguments])

    def _far_ip(self, *arguments: str) -> None:
        _run([*self._far_end(), "ip", *arguments])

    def _far_end(self) -> list[str]:
        """Returns the words before a command that run the command at the other end of the link. It keeps the machine's
        process ids, which `netns` means."""
        first = self._first
        return ["nsenter", "--target", str(first._pid), "--net", "--"] if first is not None else []

    def _held_by(self, parent: int, name: str) -> bool:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != name:
            return False
        self._pid = int(children[0])
        return True


def make_cgroups(site: Site) -> None:
    """Creates the cgroup of the node's pods in every hierarchy. The kubelet requires that it exists."""
    for root in _hierarchies():
        (root / site.cgroup.lstrip("/")).mkdir(exist_ok=True)


def clean_up() -> None:
    """Removes what can remain after the namespaces: the machine's end of the link, and the kubelets' cgroups."""
    subprocess.run(["ip", "link", "delete", LINK], capture_output=True)  # The kernel would do this later.
    for index in range(MOST_NODES):
        clean_up_cgroups(Site(index))


def clean_up_cgroups(site: Site) -> None:
    """Removes the cgroups of a node's pods, whose processes have ended."""
    within = "kubepods" if site == FIRST else site.cgroup.lstrip("/")
    for root in [hierarchy / within for hierarchy in _hierarchies()]:
        deadline = time.monotonic() + 5
        while root.exists() and time.monotonic() < deadline:
            _remove_tree(root)


def _hierarchies() -> list[Path]:
    """Returns the root of each cgroup hierarchy: one in version 2, one for each controller in version 1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _remove_tree(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:  # The last process of the cgroup has not been reaped yet.
            time.sleep(0.05)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(
            f"`{' '.join(command)}` failed: {result.stderr.strip()}. Run this as root with CAP_NET_ADMIN."
        )
