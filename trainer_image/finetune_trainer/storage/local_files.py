"""Local paths instead of S3, for debugging outside Kubernetes. `files.Files` documents the methods."""

import hashlib
import os
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import attended, beat
from finetune_trainer.storage.files import COPY_BYTES, Place, everywhere


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file as hexadecimal digits. Shows progress while it reads, because a file of weights on a
    slow disk takes minutes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(COPY_BYTES):
            digest.update(data)
            beat()
    return digest.hexdigest()


class LocalFiles:
    """The local file system."""

    def size(self, uri: str) -> int | None:
        path = Path(uri)
        return path.stat().st_size if path.is_file() else None

    def identity(self, uri: str, exact: bool = False) -> str:
        return sha256_of(Path(uri))

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        with Path(uri).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def open(self, uri: str) -> BinaryIO:
        return Path(uri).open("rb")

    def list(
        self,
        prefix: str,
        enters: Callable[[str], Hashable] = everywhere,
        takes: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[str, int]]:
        folder = Path(prefix if prefix.endswith("/") else os.path.dirname(prefix))  # noqa: PTH120 - keeps "./"
        if not folder.exists():
            return
        base = prefix[: prefix.rfind("/") + 1]
        found: list[tuple[str, int]] = []
        for place, folders, names in os.walk(folder):
            beat()
            inner = base if Path(place) == folder else f"{base}{Path(place).relative_to(folder)}/"
            folders[:] = [name for name in folders if enters(f"{inner}{name}")]
            files = (Path(place) / name for name in names if f"{inner}{name}".startswith(prefix))
            found += [(f"{inner}{path.name}", path.stat().st_size) for path in files if path.is_file()]
        yield from sorted(found)

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        shutil.copyfile(uri, to)
        advance(to.stat().st_size)

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            whole.write_bytes(data)
            if if_absent:
                path.hardlink_to(whole)
            else:
                whole.replace(path)
        except FileExistsError:
            return False
        finally:
            whole.unlink(missing_ok=True)
        return True

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, uri)
        advance(path.stat().st_size)

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        whole = Path(uri).with_name(f".{Path(uri).name}.{os.getpid()}")
        try:
            with open() as stream, whole.open("wb") as file:
                while data := stream.read(COPY_BYTES):
                    file.write(data)
                    advance(len(data))
            whole.replace(uri)
        finally:
            whole.unlink(missing_ok=True)

    def copy(self, uri: str, to: str, advance: Callable[[int], None]) -> None:
        self.send(lambda: self.open(uri), to, advance)

    def delete(self, uris: Iterable[str]) -> None:
        for uri in uris:
            path = Path(uri)
            path.unlink(missing_ok=True)
            for folder in path.parents:
                try:
                    folder.rmdir()
                except OSError:
                    break

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        """Does nothing: a file is whole or not there."""

    def prune(self, folder: str) -> None:
        for place, _, _ in attended(os.walk(folder, topdown=False)):
            with suppress(OSError):  # it is not empty
                Path(place).rmdir()

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """Returns the failure for an error, or None if the error does not come from the file system."""
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return TrainerFailure(place.missing, f"There is no file {uri}.")
        if isinstance(error, PermissionError):
            return TrainerFailure(place.denied, f"The file system denied access to {uri}.")
        return None
