"""Reads and writes files by URI, in the storage that `stores` chooses by the scheme.

Errors are raised as TrainerFailure. The reason depends on the URI: a missing file is ModelNotFound under `model.uri`,
OutputNotWritable under `output.uri`, and DatasetNotFound elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from finetune_api import globs, names
from finetune_api.bundle import Bundle
from finetune_trainer.pod.at_once import each_at_once
from finetune_trainer.pod.liveness.heartbeat import attended, quiet_work
from finetune_trainer.pod.progress import MEGABYTE, Progress
from finetune_trainer.storage.files import DATASET, MODEL, OUTPUT, PATIENCE_SECONDS, Files, Place
from finetune_trainer.storage.stores import Stores


class JobStorage:
    """All storage of a job. `open_storage` creates it."""

    def __init__(self, bundle: Bundle, stores: Stores) -> None:
        self._stores = stores
        self._places = {bundle.spec.model.uri: MODEL, bundle.spec.output.uri: OUTPUT}
        if embedding := bundle.spec.dataset.deduplicate.embedding_model:
            self._places[embedding.uri] = MODEL
        if adapter := bundle.spec.method.lora.from_:
            self._places[adapter] = MODEL

    def commits(self) -> dict[str, str]:
        """Returns the commit of each repository of a hub that was read, by its URI."""
        return self._stores.commits()

    def pin(self, commits: Mapping[str, str]) -> None:
        """Makes later reads use these commits of the repositories with these URIs."""
        self._stores.pin(commits)

    def exists(self, uri: str) -> bool:
        """Returns whether a file with exactly this URI exists."""
        return self.size(uri) is not None

    def size(self, uri: str) -> int | None:
        """Returns the size of the file in bytes, or None if the file does not exist."""
        with self._typed(uri) as files:
            return files.size(uri)

    def identity(self, uri: str, exact: bool = False) -> str:
        """Returns a text that changes when the content of the file changes. Raises TrainerFailure if the file does not
        exist or must not be read. `exact`: see Files.identity."""
        with self._typed(uri) as files:
            return files.identity(uri, exact)

    def read_bytes(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """Returns the bytes of the file from `start`, at most `length` of them."""
        with self._typed(uri) as files:
            return files.read(uri, start, length)

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        """Opens the file as a stream of bytes, for files of any size.

        The work inside the context may not be quiet for longer than usual: only a read waits for the storage."""
        with self._typed(uri, quiet=0.0) as files, files.open(uri) as stream:
            yield stream

    def list(self, uri: str) -> list[str]:
        """Returns the files that match a URI with wildcards, sorted. * and ? match within one folder, and ** matches
        any number of folders. Returns a URI without wildcards unchanged, even if no such file exists.

        A file to which several links of a volume lead is returned once."""
        if not globs.has_wildcard(uri):
            return [uri]
        prefix, pattern = globs.beginning(uri), globs.expression(uri)
        with self._typed(uri) as files:
            found = attended(files.list(prefix, lambda folder: globs.remainder(uri, folder), pattern.fullmatch))
            return [uri for uri, _ in found if pattern.fullmatch(uri)]

    def list_folder(self, uri: str, levels: int | None = None) -> dict[str, int]:
        """Returns the size in bytes of every file in the folder and its subfolders, by relative path.

        `levels`: how many levels of folders are looked at, 1 for the folder itself; by default all."""
        folder = join(uri, "")

        def is_wanted(inner: str) -> bool:
            return levels is None or inner.removeprefix(folder).count("/") + 1 < levels

        with self._typed(uri) as files:
            found = {each.removeprefix(folder): size for each, size in attended(files.list(folder, is_wanted))}
        return {path: size for path, size in found.items() if path and (levels is None or path.count("/") < levels)}

    def download_folder(
        self, uri: str, to: Path, wanted: Callable[[str], bool] = lambda path: True, levels: int | None = None
    ) -> None:
        """Downloads the files of the folder whose relative path is `wanted` to `to`, several at once. Prints the
        progress. `levels`: as for `list_folder`."""
        sizes = {path: size for path, size in self.list_folder(uri, levels).items() if wanted(path)}
        progress = Progress(f"Downloading {uri}", "MB", sum(sizes.values()), divisor=MEGABYTE)
        for path in sizes:
            (to / path).parent.mkdir(parents=True, exist_ok=True)

        def download(path: str, needed: Callable[[], None]) -> None:
            def advance(size: int) -> None:
                needed()
                progress.advance(size)

            with self._typed(join(uri, path)) as files:
                files.download(join(uri, path), to / path, advance)

        with quiet_work(PATIENCE_SECONDS):
            each_at_once(download, sizes)

    def write_bytes(self, uri: str, data: bytes, if_absent: bool = False) -> bool:
        """Writes the file. With `if_absent`, only if the file does not exist, atomically. Returns whether it was
        written."""
        with self._typed(uri) as files:
            return files.write(uri, data, if_absent)

    def upload_file(self, path: Path, uri: str) -> None:
        """Uploads a local file of any size. Prints the progress."""
        progress = Progress(f"Uploading {uri}", "MB", path.stat().st_size, divisor=MEGABYTE)
        with self._typed(uri) as files:
            files.upload(path, uri, progress.advance)

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None] = lambda size: None) -> None:
        """Uploads the seekable stream that `open` returns, of any size. `advance` gets the number of bytes sent, from
        any thread if the stream is large; an exception that it raises ends the upload."""
        with self._typed(uri) as files:
            files.send(open, uri, advance)

    def copy(self, uri: str, to: str) -> None:
        """Copies a file of any size to another URI of the same storage. Prints the progress."""
        with self._typed(uri) as files:
            progress = Progress(f"Copying to {to}", "MB", files.size(uri), divisor=MEGABYTE)
            files.copy(uri, to, progress.advance)

    def delete_prefix(self, uri: str) -> None:
        """Deletes the folder and its content. A missing folder is not an error."""
        folder = join(uri, "")
        with self._typed(uri) as files:
            files.delete(attended([found for found, _ in attended(files.list(folder))]))
            files.prune(folder)

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        """Deletes what killed pods of the job have left: partial files, and the document `uri` if it stays unfinished.
        A pod of the job that lives loses its partial file, and writes it again."""
        with self._typed(uri) as files:
            files.delete_leftovers(uri, is_unfinished)

    @contextmanager
    def _typed(self, uri: str, quiet: float = PATIENCE_SECONDS) -> Iterator[Files]:
        """Provides the storage of `uri`, and converts its errors to TrainerFailure. `quiet`: how many seconds the work
        inside may show no progress."""
        files = self._stores.of(uri)
        try:
            with quiet_work(quiet):
                yield files
        except Exception as error:
            failure = files.failure(error, uri, self._place(uri))
            if failure is None:
                raise
            raise failure from error

    def _place(self, uri: str) -> Place:
        within = [base for base in self._places if f"{uri}/".startswith(join(base, ""))]
        return self._places[max(within, key=len)] if within else DATASET


def open_storage(
    bundle: Bundle,
    secrets_dir: str | Path = names.STORAGE_FOLDER,
    hub_dir: str | Path = names.HUB_FOLDER,
    claims_dir: str | Path = names.CLAIM_FOLDER,
) -> JobStorage:
    """Returns the storage for the URIs of a job. Credentials of S3 are in `secrets_dir`/SECRET_NAME/AWS_ACCESS_KEY_ID
    and so on. The token for the hub is in `hub_dir`/token. The volume of a claim is in `claims_dir`/CLAIM."""
    return JobStorage(bundle, Stores(bundle, Path(secrets_dir), Path(hub_dir), Path(claims_dir)))


def join(uri: str, *parts: str) -> str:
    """Returns the URI of a file in a folder. If the last part is "", the result is the folder's prefix with a slash."""
    return "/".join([uri.rstrip("/"), *parts])
