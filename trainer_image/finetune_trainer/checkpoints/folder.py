"""Writes and reads folders that are either complete and unchanged, or not used.

manifest.json has the size and the sha256 of each file. It is written last, so a folder whose writer was killed has no
manifest. A folder that is truncated, incomplete, changed or from another run is not used, and one sentence says why.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.storage.job_storage import JobStorage, join

MANIFEST = "manifest.json"
READ_BYTES = 8 * 1024 * 1024
Content = bytes | Path | Callable[[], BinaryIO]
"""The content of a file: bytes, a local file, or a function that opens a seekable stream of always the same bytes."""
VERSION = 1
"""Layout of the manifest. A reader uses only folders of its own layout."""

SPEC = "spec."
"""Beginning of the names of facts that are fields of the spec. Such a field without a value is not set."""
DEFAULTED = "fields with their default"
"""The fact that lists the names of those facts that are fields with their default value."""
SETTLED = {
    "status.resolved.method": "spec.method.type",
    "status.resolved.learningRate": "spec.training.learningRate",
    "status.resolved.totalSteps": "spec.training.maxSteps",
    "status.resolved.warmupSteps": "spec.training.warmupRatio",
    "status.resolved.evaluateEvery": "spec.training.evaluateEvery",
    "status.resolved.publish": "spec.training.publish",
}
"""The facts that preflight settles, each with the field of the spec that has no other effect on the steps. They are
compared in place of their fields: a job that sets what an earlier one has by default takes the same steps. The fields
are written for earlier versions, which compare them. The steps come before the warm-up, which follows from them."""


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


@dataclass(frozen=True)
class Difference:
    """A fact that is not the same for a folder and for this run."""

    name: str
    written: Any
    """Its value for the folder. None: the folder has no such fact, or a field that is not set."""
    present: Any
    """Its value for this run, in the same way."""

    def __str__(self) -> str:
        """A clause that names the fact and both values."""
        written, present = _named(self.name, self.written), _own(self.name, self.present)
        return f"it was written for {written}, and this run has {present}"


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    """All files by their path in the folder."""
    about: dict[str, Any] = {}
    """Facts on which the content depends, for example the digest of the data. The writer chooses them."""

    def difference(self, facts: Mapping[str, Any]) -> Difference | None:
        """Returns the first fact that is not the same in `about` and in `facts`, or None.

        A fact that only one of them has may be one that the other's version did not know. It then counts as the same if
        it has its default: if DEFAULTED names it. The fields in SETTLED are not compared."""
        ours, theirs = json.loads(json.dumps(facts)), self.about
        new = set(ours.get(DEFAULTED, ())) - theirs.keys()
        unknown = set(theirs.get(DEFAULTED, ())) - ours.keys()
        left_out = {DEFAULTED, *SETTLED.values(), *new, *unknown}
        for name in [*ours, *theirs]:
            if name not in left_out and theirs.get(name) != ours.get(name):
                return Difference(name, theirs.get(name), ours.get(name))
        return None


@dataclass(frozen=True)
class Unusable:
    """A folder that must not be used."""

    why: str
    """One sentence that names the folder and says what is wrong with it."""
    difference: Difference | None = None
    """Set if the folder is complete, but was written for other facts."""


def write_folder(
    storage: JobStorage,
    uri: str,
    files: Mapping[str, Content],
    about: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> Manifest:
    """Writes `files`, by their path in the folder, and then the manifest. Returns the manifest.

    `advance`: gets the number of bytes sent, from any thread; an exception that it raises ends the writing. No folder
    must exist at `uri`. Raises TrainerFailure as JobStorage does; the folder is then not usable."""
    entries = {}
    for name, content in files.items():
        entries[name] = _entry(content, lambda: advance(0))
        storage.send(_opener(content), join(uri, name), advance)
    advance(0)
    manifest = Manifest(files=entries, about=dict(about or {}))
    storage.write_bytes(join(uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
    return manifest


def read_manifest(storage: JobStorage, uri: str, facts: Mapping[str, Any] | None = None) -> Manifest | Unusable:
    """Returns the manifest of the folder `uri` if all its files have the right size. The files' content is not read.

    `facts`: what the manifest's `about` must equal, if given. Raises TrainerFailure if the storage does not answer."""
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
    if facts is not None and (difference := manifest.difference(facts)):
        return _unusable(uri, str(difference), difference)
    return manifest


def read_folder(
    storage: JobStorage, uri: str, into: Path, facts: Mapping[str, Any] | None = None
) -> Manifest | Unusable:
    """Downloads the folder `uri` to the local folder `into`, and verifies size and sha256 of each file.

    `facts`: what the manifest's `about` must equal, if given. If the folder is not usable, `into` may have some of its
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


def _opener(content: Content) -> Callable[[], BinaryIO]:
    if isinstance(content, bytes):
        return lambda: BytesIO(content)
    return (lambda: content.open("rb")) if isinstance(content, Path) else content


def _entry(content: Content, between: Callable[[], None] = beat) -> FileEntry:
    """Returns size and sha256. Calls `between` between the parts that it reads."""
    digest, size = hashlib.sha256(), 0
    with _opener(content)() as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
            size += len(data)
            between()
    return FileEntry(size=size, sha256=digest.hexdigest())


def _unusable(uri: str, why: str, difference: Difference | None = None) -> Unusable:
    return Unusable(f"{uri} is not used: {why}.", difference)


def _named(name: str, value: Any) -> str:
    """Returns a fact of a folder in words, with its name."""
    if value is None:
        return f"the default of {name}" if name.startswith(SPEC) else f"no {name.removeprefix('the ')}"
    return f"{name} {_shown(value)}"


def _own(name: str, value: Any) -> str:
    """Returns the same fact of this run in words, after its name was said."""
    if value is None:
        return "its default" if name.startswith(SPEC) else "none"
    return _shown(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
