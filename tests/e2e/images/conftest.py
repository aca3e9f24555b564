"""The operator's real image: built, and given to a cluster whose containers see nothing of this machine.

The image needs a base. Where no container registry can be reached, IMAGES_BASE=debootstrap makes one from Debian's
packages (as root, a minute, kept for the next run); any other value is taken as the reference of the base to use.
Unset, the Dockerfile's own base is pulled, and Debian's packages are the way out when that fails.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster

ROOT = Path(__file__).parents[3]
DEBIAN_BASE = "localhost/finetune-debian-base:bookworm"
PULL_SECONDS = 180


@pytest.fixture(scope="session")
def builder() -> str:
    """docker when its engine answers, else buildah, installed where that is possible."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return "docker"
    _require("buildah")
    return "buildah"


@pytest.fixture(scope="session")
def base_image(builder: str) -> str:
    """Reference of an image with Python 3.11."""
    wanted = os.environ.get("IMAGES_BASE", "")
    if wanted == "debootstrap":
        return _debian_base(builder)
    default = re.findall(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "Dockerfile.operator").read_text(), re.MULTILINE)[0]
    return wanted or (default if _pulled(builder, default) else _debian_base(builder))


@pytest.fixture(scope="session")
def operator_archive(base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator's image as one file."""
    folder = tmp_path_factory.mktemp("images")
    command = [sys.executable, "images/build.py", "--only", "operator"]
    subprocess.run([*command, "--base-image", base_image, "--archive", str(folder)], cwd=ROOT, check=True)
    return folder / "operator.tar"


@pytest.fixture(scope="session")
def closed_cluster(operator_archive: Path) -> Iterator[Cluster]:
    """A whole cluster, without this machine's files in its containers, that has the operator's image."""
    with Cluster(ROOT / "build" / "test-images", gpus=0, host_mounts=False) as cluster:
        cluster.load_image(operator_archive)
        yield cluster


def _pulled(builder: str, image: str) -> bool:
    print(f"Pulling {image}", flush=True)
    try:
        return subprocess.run([builder, "pull", image], timeout=PULL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _debian_base(builder: str) -> str:
    """A minimal Debian with Python, made from its packages; kept in the builder's store."""
    inspect = {"docker": ["docker", "image", "inspect"], "buildah": ["buildah", "inspect", "--type", "image"]}[builder]
    if subprocess.run([*inspect, DEBIAN_BASE], capture_output=True).returncode == 0:
        return DEBIAN_BASE
    _require("debootstrap")
    print(f"Making {DEBIAN_BASE} with debootstrap (about a minute)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
        archive = Path(folder) / "root.tar"
        subprocess.run(["tar", "--create", "--file", str(archive), "--directory", str(root), "."], check=True)
        if builder == "docker":
            subprocess.run(["docker", "import", str(archive), DEBIAN_BASE], check=True)
        else:
            _buildah_import(archive)
    return DEBIAN_BASE


def _buildah_import(archive: Path) -> None:
    def buildah(*arguments: str) -> str:
        return subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    container = buildah("from", "scratch")
    try:
        buildah("add", container, str(archive), "/")
        buildah("commit", container, DEBIAN_BASE)
    finally:
        buildah("rm", container)


def _require(tool: str) -> None:
    """Installs a missing tool on Debian and Ubuntu as root; elsewhere the test is skipped, saying what it lacks."""
    if os.geteuid() != 0:
        pytest.skip(f"{tool} has to be run as root here: run this test with sudo")
    if shutil.which(tool):
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"{tool} is missing: install it with your package manager, or start docker and set IMAGES_BASE")
    print(f"Installing the system package {tool}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True)
    subprocess.run(["apt-get", "-qq", "install", "--yes", tool], env=environment, check=True)
