"""What the machine has to have: installed on Debian and Ubuntu as root; elsewhere one sentence says what to do."""

import os
import platform
import shutil
import subprocess

from devcluster.progress import ClusterError, console, step

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
"""What a node needs, by the Debian package that has it."""


def require_linux() -> None:
    """Raises ClusterError elsewhere than on 64-bit Linux."""
    if platform.system() != "Linux":
        raise ClusterError(
            f"The local cluster needs Linux, this is {platform.system()}: run it in a Linux virtual machine, "
            "or use a cluster you have with CLUSTER=current."
        )


def require_node_tools() -> None:
    """Installs the missing system packages, or raises ClusterError with the sentence that helps."""
    require_linux()
    if os.geteuid() != 0:
        raise ClusterError("The local cluster needs root, for network namespaces and containers: run this with sudo.")
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=_path()) is None})
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"These are missing: {names} (Debian's names). Install them with your package manager.")
    console.print(f"  installing system packages: {names}")
    with step("apt-get install"):
        if not _install(missing):
            _apt(["update"])
            if not _install(missing):
                raise ClusterError(f"apt-get could not install {names}; run `apt-get install {names}` to see why.")


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _install(packages: list[str]) -> bool:
    return _apt(["install", "--yes", "--no-install-recommends", *packages])


def _apt(arguments: list[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True).returncode == 0
