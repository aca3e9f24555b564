"""Repositories with commits, and their files in git and in LFS."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

LFS_BYTES = 2000
"""Files of this size and larger are in LFS, as are all .safetensors files."""


@dataclass(frozen=True)
class File:
    """A file at a commit."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob(self) -> str:
        """What git calls the file, or its pointer if it is in LFS."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    def described(self, path: str) -> dict[str, Any]:
        """The file as the API lists it."""
        about: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.blob}
        if self.lfs:
            about["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return about


@dataclass
class Repository:
    """A model or a data set."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    """The files of each commit by their paths."""
    refs: dict[str, str] = field(default_factory=dict)
    """The commit of each branch and tag."""

    def commit(self, name: str, files: Mapping[str, bytes] | Path, ref: str) -> str:
        """Adds a commit with exactly these files, and moves the branch or tag to it. Returns it. `name`: of this
        repository."""
        found = _read(files) if isinstance(files, Path) else files
        whole = {
            path: File(data, len(data) >= LFS_BYTES or path.endswith(".safetensors")) for path, data in found.items()
        }
        text = json.dumps([name, len(self.commits), sorted((path, file.blob) for path, file in whole.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = whole
        self.refs[ref] = commit
        return commit


def entries(files: Mapping[str, File]) -> list[dict[str, Any]]:
    """The files and folders of a commit, as the API lists them."""
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
    found = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
    return sorted(found + [file.described(path) for path, file in files.items()], key=lambda entry: str(entry["path"]))


def _read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
