"""The cache of prepared rows in the storage: one folder for each namespace and digest of what determines the rows.

    NAMESPACE/DIGEST/SHA256 ...        the files, named by their content
    NAMESPACE/DIGEST/manifest.json     their names, written last

Jobs that write the same folder at once do not disturb each other: a file never changes, and each manifest names a
complete set of files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError

from finetune_api.bundle import Bundle
from finetune_trainer.handover.renewed import is_young
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.local_files import sha256_of

MANIFEST = "manifest.json"
LOCAL = "local"
"""Namespace and name of a job outside Kubernetes."""


def _inside(name: str) -> str:
    """Returns `name`. Raises ValueError if it is not a plain path below a folder: it becomes a local path."""
    if PurePosixPath(name).as_posix() != name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("is not a file of the folder")
    return name


Files = dict[Annotated[str, AfterValidator(_inside)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
"""The sha256 of each file, as hexadecimal digits, by its path."""


class _Manifest(BaseModel):
    files: Files
    job: str
    written: AwareDatetime | None = None


@dataclass(frozen=True)
class CachedRows:
    """Files in one folder of the cache."""

    uri: str
    """The folder."""
    files: Mapping[str, str]
    """The sha256 of each file by its path."""
    job: str = ""
    """The name of the job that wrote them."""
    reused: bool = False
    """Whether this job took them over."""
    written: datetime | None = None
    """When they were written."""

    @property
    def young(self) -> bool:
        """Whether no lifecycle rule can delete them soon."""
        return self.written is not None and is_young(self.written, datetime.now(UTC))

    def below(self, folder: str) -> "CachedRows":
        """Returns the files of one subfolder, by their paths in it."""
        within = {
            name.removeprefix(f"{folder}/"): sha for name, sha in self.files.items() if name.startswith(f"{folder}/")
        }
        return CachedRows(self.uri, within, self.job, self.reused, self.written)


def place_in_cache(bundle: Bundle, digest: str) -> str | None:
    """Returns the URI of the folder for rows of this digest, in the job's namespace. None: the profile names no
    cache."""
    if bundle.prepared_cache is None:
        return None
    return join(bundle.prepared_cache.uri, bundle.job.namespace if bundle.job else LOCAL, digest)


def look_up(storage: JobStorage, uri: str) -> CachedRows | str | None:
    """Returns the rows in the folder `uri`, None if there are none, or a sentence that says why they are not usable."""
    try:
        if not storage.exists(join(uri, MANIFEST)):
            return None
        manifest = _Manifest.model_validate_json(storage.read_bytes(join(uri, MANIFEST)))
    except ValidationError:
        return f"The prepared rows in {uri} are not used: the {MANIFEST} is damaged."
    except TrainerFailure as failure:
        return f"The cache of prepared rows cannot be read: {failure.message}"
    return CachedRows(uri, manifest.files, manifest.job, reused=True, written=manifest.written)


def fetch(storage: JobStorage, cached: CachedRows, folder: Path) -> str | None:
    """Downloads the files to the existing folder `folder` and verifies them. Returns None, or the end of a sentence
    that says which file is missing or changed. Raises TrainerFailure if the storage does not answer."""
    arrived, wanted = folder / ".cached", set(cached.files.values())
    storage.download_folder(cached.uri, arrived, lambda path: path in wanted)
    for name, sha256 in cached.files.items():
        if not (arrived / sha256).exists():
            return f"the file of {name} is missing"
        if sha256_of(arrived / sha256) != sha256:
            return f"the content of {name} is not what was written"
    for name, sha256 in cached.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(arrived / sha256)
    for path in arrived.iterdir():
        path.unlink()
    arrived.rmdir()
    return None


def store(storage: JobStorage, uri: str, job: str, files: Mapping[str, Path]) -> CachedRows:
    """Writes `files`, by their paths, to the folder `uri`. Raises TrainerFailure as JobStorage does."""
    digests = {name: sha256_of(path) for name, path in files.items()}
    for sha256, path in {digests[name]: path for name, path in files.items()}.items():
        storage.upload_file(path, join(uri, sha256))
    manifest = _Manifest(files=digests, job=job, written=datetime.now(UTC))
    storage.write_bytes(join(uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
    return CachedRows(uri, digests, job, written=manifest.written)
