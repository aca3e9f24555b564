"""Writes and reads folders that are either complete and unchanged, or not used.

manifest.json has the size and the sha256 of each file. It is written last, so a folder whose writer was killed has no
manifest. A folder that is truncated, incomplete, changed or from another run is not used, and one sentence says why.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.storage import JobStorage, join

MANIFEST = "manifest.json"
VERSION = 1
"""Layout of the manifest. A reader uses only folders of its own layout."""


def _inside(name: str) -> str:
    """Returns `name`. Raises ValueError if it is not a plain path below the folder: it becomes a local path."""
    if PurePosixPath(name).as_posix() != name or name.startswith("/") or {"..", ".", MANIFEST} & {*name.split("/")}:
        raise ValueError("is not a file of the folder")
    return name


class FileEntry(BaseModel):
    """One file of a folder."""

    model_config = ConfigDict(frozen=True)

    size: int
    """In bytes."""
    sha256: str
    """As hexadecimal digits."""


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    """All files by their path in the folder."""
    about: dict[str, Any] = {}
    """Facts on which the content depends, for example the digest of the data. The writer chooses them."""

    def difference(self, facts: Mapping[str, Any]) -> str | None:
        """Returns a clause that names the first of `facts` that is another in `about`, or None if all are equal."""
        for name, ours in json.loads(json.dumps(facts)).items():
            theirs = self.about.get(name)
            if theirs != ours:
                return f"it was written for {name} {_shown(theirs)}, and this run has {_shown(ours)}"
        return None


@dataclass(frozen=True)
class Unusable:
    """A folder that must not be used."""

    why: str
    """One sentence that names the folder and says what is wrong with it."""


def write_folder(
    storage: JobStorage, uri: str, files: Mapping[str, bytes | Path], about: Mapping[str, Any] | None = None
) -> Manifest:
    """Writes `files`, by their path in the folder, and then the manifest. Returns the manifest.

    No folder must exist at `uri`. Raises TrainerFailure as JobStorage does; the folder is then not usable."""
    entries = {}
    for name, content in files.items():
        entries[name] = _entry(content)
        if isinstance(content, bytes):
            storage.write_bytes(join(uri, name), content)
        else:
            storage.upload_file(content, join(uri, name))
    manifest = Manifest(files=entries, about=dict(about or {}))
    storage.write_bytes(join(uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
    return manifest


def read_manifest(storage: JobStorage, uri: str, facts: Mapping[str, Any] | None = None) -> Manifest | Unusable:
    """Returns the manifest of the folder `uri` if all its files have the right size. The files' content is not read.

    `facts`: what must be the same in the manifest's `about`. Raises TrainerFailure if the storage does not answer."""
    sizes = storage.list_folder(uri)
    if MANIFEST not in sizes:
        return _unusable(uri, f"it has no {MANIFEST}, because its writer was stopped or the file was deleted")
    try:
        manifest = Manifest.model_validate_json(storage.read_bytes(join(uri, MANIFEST)))
    except ValidationError:
        return _unusable(uri, f"its {MANIFEST} is damaged or from another version of the trainer")
    except TrainerFailure:
        return _gone_or_raise(storage, uri, MANIFEST)
    for name, entry in manifest.files.items():
        if name not in sizes:
            return _unusable(uri, f"its file {name} is missing")
        if sizes[name] != entry.size:
            return _unusable(uri, f"its file {name} has {sizes[name]:,} bytes instead of {entry.size:,}")
    if difference := manifest.difference(facts or {}):
        return _unusable(uri, difference)
    return manifest


def read_folder(
    storage: JobStorage, uri: str, into: Path, facts: Mapping[str, Any] | None = None
) -> Manifest | Unusable:
    """Downloads the folder `uri` to the local folder `into`, and verifies size and sha256 of each file.

    `facts`: what must be the same in the manifest's `about`. If the folder is not usable, `into` may have some of its
    files. Raises TrainerFailure if the storage does not answer or denies access."""
    manifest = read_manifest(storage, uri, facts)
    if isinstance(manifest, Unusable):
        return manifest
    try:
        storage.download_folder(uri, into, lambda name: name in manifest.files)
    except TrainerFailure:
        return _gone_or_raise(storage, uri, *manifest.files)
    for name, entry in manifest.files.items():
        if not (into / name).exists():
            return _unusable(uri, f"its file {name} is missing")
        if _entry(into / name) != entry:
            return _unusable(uri, f"the content of its file {name} is not what was written")
    return manifest


def _gone_or_raise(storage: JobStorage, uri: str, *names: str) -> Unusable:
    """Returns why the folder is not usable if one of its files was deleted while it was read.

    Otherwise raises the error that is being handled."""
    gone = next((name for name in names if not storage.exists(join(uri, name))), None)
    if gone is None:
        raise
    return _unusable(uri, f"its file {gone} was deleted while it was read")


def _entry(content: bytes | Path) -> FileEntry:
    if isinstance(content, bytes):
        return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        return FileEntry(size=content.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _unusable(uri: str, why: str) -> Unusable:
    return Unusable(f"{uri} is not used: {why}.")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
