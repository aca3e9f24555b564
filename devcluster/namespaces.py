"""The node's network, mount and process namespaces, separate from the machine's.

The network has no route out: what runs in it can reach itself and, over one link, the machine's end of that link.
Ending the process that holds the namespaces open ends everything in them and undoes every mount, bridge and rule.
"""

import os
import subprocess
import time
from pathlib import Path

from devcluster.processes import Processes
from devcluster.progress import ClusterError

NODE_ADDRESS = "10.89.0.2"
"""The node's address, for the machine and for pods."""
HOST_ADDRESS = "10.89.0.1"
"""The address of the machine's end of the link."""
LINK = "finetune-dev"
BRIDGE_ADDRESS = "10.88.0.1"
POD_RANGE = "10.88.0.0/16"
SERVICE_RANGE = "10.87.0.0/24"
SERVICE_ADDRESS = "10.87.0.1"
"""The address of the API server's Service: the first address of the range."""
HOLDER = "namespaces"
"""Name of the process that keeps the namespaces open."""

_SETUP = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
ip link add pods0 type bridge
ip addr add {BRIDGE_ADDRESS}/16 dev pods0
ip link set pods0 up
ip route add {SERVICE_RANGE} dev pods0
echo 1 > /proc/sys/net/ipv4/ip_forward
exec "$0"
"""


class Namespaces:
    """The namespaces. `open` creates them, and commands of the node are started through `enter`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._pid = processes.running().get(HOLDER, 0)

    def open(self, pause: Path) -> None:
        """Creates the namespaces and the link to them. The program `pause` keeps the namespaces open."""
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        parent = self._processes.start(HOLDER, [*unshare, "sh", "-c", _SETUP, str(pause)])
        self._processes.wait_for("the node's network", lambda: self._held_by(parent, pause.name), [HOLDER], 10)
        self._processes.adopt(HOLDER, self._pid)
        _ip("link", "add", LINK, "type", "veth", "peer", "name", "host0", "netns", str(self._pid))
        _ip("address", "add", f"{HOST_ADDRESS}/30", "dev", LINK)
        _ip("link", "set", LINK, "up")
        for command in (["address", "add", f"{NODE_ADDRESS}/30", "dev", "host0"], ["link", "set", "host0", "up"]):
            subprocess.run([*self.enter(), "ip", *command], check=True, capture_output=True)

    def enter(self) -> list[str]:
        """Returns the words before a command that run the command on the node."""
        return ["nsenter", "--target", str(self._pid), "--mount", "--net", "--pid", "--"]

    def _held_by(self, parent: int, name: str) -> bool:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != name:
            return False
        self._pid = int(children[0])
        return True


def clean_up() -> None:
    """Removes what can remain after the namespaces: the machine's end of the link, and the kubelet's cgroups."""
    subprocess.run(["ip", "link", "delete", LINK], capture_output=True)  # The kernel would do this later.
    for root in Path("/sys/fs/cgroup").glob("**/kubepods"):
        deadline = time.monotonic() + 5
        while root.exists() and time.monotonic() < deadline:
            _remove_tree(root)


def _remove_tree(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:  # The last process of the cgroup has not been reaped yet.
            time.sleep(0.05)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(
            f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}. Run this as root with CAP_NET_ADMIN."
        )
