"""Volumes of PersistentVolumeClaims that the pod mounts. `files.Files` documents the methods."""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.storage.claims.failures import failure_of_claim
from finetune_trainer.storage.claims.leftovers import delete_unfinished
from finetune_trainer.storage.claims.own_disk import of_own_disk, parts_of
from finetune_trainer.storage.claims.paths import Volume, volume_of
from finetune_trainer.storage.claims.writes import PARTIAL, link, name_of_partial, put, remove, remove_empty
from finetune_trainer.storage.files import COPY_BYTES, Place, everywhere

SAMPLE_BYTES = 1024 * 1024
"""Number of bytes at each end of a large file that its identity depends on."""


class ClaimFiles:
    """The volumes of the claims that the job uses."""

    def __init__(self, bundle: Bundle, mounts: Path) -> None:
        """`mounts`: the folder with the volumes, by the name of the claim."""
        self._in_a_pod, self._mounts = bundle.job is not None, mounts
        self._output = bundle.spec.output.uri.rstrip("/")
        self._work = f"{self._output}/{names.WORK_FOLDER}/{bundle.job.uid if bundle.job else 'local'}"

    def size(self, uri: str) -> int | None:
        volume, path = volume_of(uri, self._mounts)
        place = volume.place(path)
        return place.stat().st_size if place.is_file() else None

    def identity(self, uri: str, exact: bool = False) -> str:
        """Returns the sha256 of a small file. For a large one it depends on the size, the time of the last change, and
        the first and the last bytes: weights of many gigabytes would take minutes to read. `exact`: and on the time
        that the file system itself notes at each change, which nobody can set."""
        with self._open(uri) as file:
            about = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(SAMPLE_BYTES))
            if about.st_size <= 2 * SAMPLE_BYTES:
                digest.update(file.read())
                return digest.hexdigest()
            file.seek(-SAMPLE_BYTES, os.SEEK_END)
            digest.update(file.read())
            noted = f" {about.st_ctime_ns}" if exact else ""
            return f"{digest.hexdigest()} {about.st_size} {about.st_mtime_ns}{noted}"

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        with self._open(uri) as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def open(self, uri: str) -> BinaryIO:
        return self._open(uri)

    def list(
        self,
        prefix: str,
        enters: Callable[[str], Hashable] = everywhere,
        takes: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[str, int]]:
        base = prefix[: prefix.rfind("/") + 1]
        volume, folder = volume_of(base, self._mounts)

        def uri_of(path: str) -> str:
            return f"{base}{path.removeprefix(folder)}"

        files = attended(volume.files(folder, lambda inner: enters(uri_of(inner)), once=takes is not None))
        found = ((uri_of(file.path), file) for file in files)
        named = [(uri, file) for uri, file in found if uri.startswith(prefix) and (takes is None or takes(uri))]
        if takes is not None:
            # Of the names of a file, its own comes first, and then that which sorts first.
            named.sort(key=lambda pair: (pair[1].is_linked, pair[0]))
            named = list({file.place: (uri, file) for uri, file in reversed(named)}.values())
        yield from sorted((uri, file.size) for uri, file in named)

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        with self._open(uri) as file, ExitStack() as until_closed:
            copy = of_own_disk(lambda: to.open("wb"))
            until_closed.callback(of_own_disk, copy.close)
            while data := file.read(COPY_BYTES):
                of_own_disk(partial(copy.write, data))
                advance(len(data))

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """Returns the failure for an error, or None if the error does not come from the volume."""
        return failure_of_claim(error, uri, place, self._in_a_pod)

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        return put(*self._own(uri), lambda file: file.write(data), if_absent)

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        self.send(lambda: path.open("rb"), uri, advance)

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        self._put(lambda: parts_of(open), uri, advance)

    def copy(self, uri: str, to: str, advance: Callable[[int], None]) -> None:
        volume, path, work = self._own(to)
        if link(volume, volume_of(uri, self._mounts)[1], path, work):
            advance(self.size(to) or 0)
        else:
            self._put(lambda: self._parts(uri), to, advance)

    def _put(self, parts: Callable[[], Iterable[bytes]], uri: str, advance: Callable[[int], None]) -> None:
        def fill(file: BinaryIO) -> None:
            for data in parts():
                file.write(data)
                advance(len(data))

        put(*self._own(uri), fill)

    def _parts(self, uri: str) -> Iterator[bytes]:
        with self._open(uri) as file:
            while data := file.read(COPY_BYTES):
                yield data

    def delete(self, uris: Iterable[str]) -> None:
        for uri in uris:
            remove(*self._inside(uri))

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        others = self.list(f"{self._work}/{PARTIAL}", enters=lambda folder: False)
        self.delete([found for found, _ in others if not found.startswith(f"{self._work}/{name_of_partial()}")])
        delete_unfinished(*self._own(uri), is_unfinished)

    def prune(self, folder: str) -> None:
        remove_empty(*self._inside(folder))

    def _inside(self, uri: str) -> tuple[Path, str]:
        """Returns the folder of the output, and the path in it. For a place beside the output, it is the folder that
        contains the place."""
        volume, path, _ = self._own(uri)
        base = f"{volume_of(self._output, self._mounts)[1]}/"
        if not path.startswith(base):
            base = path[: path.rfind("/") + 1]
        return volume.place(base), path.removeprefix(base)

    def _own(self, uri: str) -> tuple[Volume, str, str]:
        """Returns the volume of the output, the path of a URI in it, and the path of the job's work folder."""
        volume, path = volume_of(uri, self._mounts)
        output, work = volume_of(self._work, self._mounts)
        assert volume == output, f"{uri} is only read"
        return volume, path, work

    def _open(self, uri: str) -> BinaryIO:
        volume, path = volume_of(uri, self._mounts)
        return os.fdopen(volume.open(path), "rb")
