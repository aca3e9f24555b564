"""Checks what the machine needs. Installs missing packages on Debian and Ubuntu. On other systems, names them."""

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
"""Programs that a node needs, with the Debian package of each."""


def require_linux() -> None:
    """Raises ClusterError if the system is not Linux."""
    if platform.system() != "Linux":
        raise ClusterError(
            f"The local cluster needs Linux, and this is {platform.system()}. Run it in a Linux virtual machine, "
            "or set CLUSTER=current to use another cluster."
        )


def require_node_tools() -> None:
    """Installs missing system packages. Raises ClusterError with the remedy if it cannot."""
    require_linux()
    if os.geteuid() != 0:
        raise ClusterError("The local cluster needs root, for network namespaces and containers. Run it with sudo.")
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=_path()) is None})
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"Packages are missing: {names} (Debian's names). Install them with your package manager.")
    console.print(f"  installing system packages: {names}")
    with step("apt-get install"):
        if not _install(missing):
            _apt(["update"])
            if not _install(missing):
                raise ClusterError(f"apt-get could not install {names}. Run `apt-get install {names}` to see why.")


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _install(packages: list[str]) -> bool:
    return _apt(["install", "--yes", "--no-install-recommends", *packages])


def _apt(arguments: list[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True).returncode == 0
