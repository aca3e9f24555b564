"""The development images: a few folders and links. Every container gets the machine's files as read-only mounts.

Nothing is built or copied when the code changes, because pods mount the working tree. Everything is mounted below
/opt/finetune, so that it does not matter where the clone and the virtual environment lie.
"""

import hashlib
import io
import json
import os
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

OPERATOR_IMAGE = "localhost/finetune-operator:dev"
TRAINER_IMAGE = "localhost/finetune-trainer:dev"
PAUSE_IMAGE = "localhost/pause:dev"
ROOT = Path(__file__).parents[1]
SOURCES = ("crds", "operator", "trainer_image")
_HOME = "/opt/finetune"
_USER = "65532"


def mounts() -> list[dict[str, Any]]:
    """Returns the machine's folders that every container mounts, as OCI runtime mounts."""
    folders = {
        "/usr": "/usr",
        "/etc/ssl": "/etc/ssl",
        "/etc/alternatives": "/etc/alternatives",
        f"{_HOME}/python": sys.base_prefix,
        f"{_HOME}/packages": sysconfig.get_path("purelib"),
        **{f"{_HOME}/src/{name}": str(ROOT / name) for name in SOURCES},
    }
    return [
        {"destination": inside, "type": "bind", "source": outside, "options": ["rbind", "ro"]}
        for inside, outside in folders.items()
        if Path(outside).exists()
    ]


def python() -> str:
    """Returns the path of the Python interpreter in the development images."""
    executable = Path(os.path.realpath(sys.executable)).relative_to(os.path.realpath(sys.base_prefix))
    return f"{_HOME}/python/{executable}"


def environment() -> dict[str, str]:
    """Returns the environment variables of the development images."""
    return {
        "PATH": "/usr/bin",
        # A Python with a shared library would look for the library in its original folder.
        "LD_LIBRARY_PATH": f"{_HOME}/python/lib",
        "PYTHONPATH": ":".join([*(f"{_HOME}/src/{name}" for name in SOURCES), f"{_HOME}/packages"]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "USER": "nonroot",
        # Pods share the machine's processors. Trainers with more threads than there are processors wait for each other.
        **{name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"},
    }


def write_archive(path: Path, pause: Path) -> None:
    """Writes one archive with all images, for `ctr images import`. `pause`: the program of the pause containers."""
    images = {
        PAUSE_IMAGE: {"Entrypoint": ["/pause"]},
        OPERATOR_IMAGE: config([python(), "-m", "finetune_operator"]),
        TRAINER_IMAGE: config([python(), "-m", "finetune_trainer"]),
    }
    write_images(path, base_layer(pause), images)


def config(entrypoint: list[str]) -> dict[str, Any]:
    """Returns the configuration of an image that runs `entrypoint` with Python's environment."""
    variables = [f"{name}={value}" for name, value in environment().items()]
    return {"Entrypoint": entrypoint, "Env": variables, "User": _USER}


def write_images(path: Path, layer: bytes, images: dict[str, dict[str, Any]]) -> None:
    """Writes an archive of images with one common layer. `images`: configuration of each by its reference."""
    layer_name = hashlib.sha256(layer).hexdigest()
    members = {f"{layer_name}/layer.tar": layer}
    manifest = []
    for reference, content in images.items():
        text = json.dumps(
            {
                "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
                "os": "linux",
                "config": content,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_name}"]},
            }
        ).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json"
        members[name] = text
        manifest.append({"Config": name, "RepoTags": [reference], "Layers": [f"{layer_name}/layer.tar"]})
    members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            _add(archive, name, data=data)


def base_layer(pause: Path, more: dict[str, bytes] | None = None) -> bytes:
    """Returns the layer of folders and links, as a tar archive. `more`: content of further files by path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("usr", "etc", "var", "var/tmp", "proc", "sys", "dev", "run", "opt"):
            _add(archive, name, kind=tarfile.DIRTYPE)
        _add(archive, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
        for name in ("bin", "lib", "lib64", "sbin"):
            _add(archive, name, kind=tarfile.SYMTYPE, link=f"usr/{name}")
        _add(
            archive, "etc/passwd", data=b"root:x:0:0::/root:/bin/sh\nnonroot:x:65532:65532::/tmp:/bin/sh\n", mode=0o644
        )
        _add(archive, "etc/group", data=b"root:x:0:\nnonroot:x:65532:\n", mode=0o644)
        _add(archive, "pause", data=pause.read_bytes())
        for name, data in (more or {}).items():
            _add(archive, name, data=data)
    return buffer.getvalue()


def _add(
    archive: tarfile.TarFile,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o755,
    link: str = "",
    data: bytes = b"",
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    archive.addfile(info, io.BytesIO(data))
