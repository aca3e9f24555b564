"""Models and data sets of a hub with the protocol of the Hugging Face Hub. `files.Files` documents the methods.

The client is huggingface_hub. A repository is read at one commit. `listing` finds this commit, and the size and the
digest of every file. Files are then read by ranges, in preflight only the parts that it needs."""

import io
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NoReturn

from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented

from finetune_api import hub, names
from finetune_api.bundle import Bundle
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.positioned import Ranges
from finetune_trainer.storage.files import Place, everywhere
from finetune_trainer.storage.hub.failures import DamagedFile, NoSuchFile, Request, failure_of_hub
from finetune_trainer.storage.hub.listing import Hub, HubFile, Token
from finetune_trainer.storage.hub.requests import Location, read_range

READ_BYTES = 8 * 1024 * 1024
SMALLEST_PART, LARGEST_PART = 8 * 1024 * 1024, 32 * 1024 * 1024
"""Sizes in bytes of the ranges in which a file is downloaded, see `part_bytes`."""
CONNECTIONS = 8
"""Number of ranges that are downloaded at the same time, of all files together."""


def part_bytes(size: int) -> int:
    """Returns the size of the ranges in which a file of `size` bytes is downloaded.

    Each connection gets four of them, so that the first ones are hashed while the last ones arrive. Smaller ranges than
    SMALLEST_PART wait mostly for the hub's answer, and larger ones than LARGEST_PART cost more when one is cut."""
    return max(SMALLEST_PART, min(LARGEST_PART, size // (4 * CONNECTIONS)))


class HubFiles:
    """The hub of the profile."""

    def __init__(self, bundle: Bundle, token_dir: Path, commits: dict[str, str]) -> None:
        """`token_dir`: has the file names.HUB_TOKEN if there is a token. `commits`: the commit of each repository to
        read, by its URI. The commits of further repositories are added when they are read."""
        assert bundle.hub
        self._bundle, self._endpoint = bundle, bundle.hub.endpoint
        self._token_file, self._commits = token_dir / names.HUB_TOKEN, commits
        self._hub = Hub(self._endpoint, self._sent_token)
        self._snapshots: dict[hub.Repository, dict[str, HubFile]] = {}
        self._locations: dict[str, Location] = {}
        self._readable: set[hub.Repository] = set()
        """The repositories of which a file could be read, at the commit of their snapshot."""
        self._asking = Lock()
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def size(self, uri: str) -> int | None:
        repository, path = _split(uri)
        found = self._files(repository).get(path)
        return found.size if found else None

    def identity(self, uri: str, exact: bool = False) -> str:
        file = self._file(uri)
        if file.size:
            self._require_readable(uri)
        return file.sha256 or file.blob

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        size = self._file(uri).size
        return self._range(uri, start, size if length is None else min(start + length, size))

    def open(self, uri: str) -> BinaryIO:
        return io.BufferedReader(_Reader(self._range, uri, self._file(uri).size), READ_BYTES)

    def list(
        self,
        prefix: str,
        enters: Callable[[str], Hashable] = everywhere,
        takes: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[str, int]]:
        repository, _ = _split(prefix)
        found = ((f"{repository.uri}/{path}", file.size) for path, file in self._files(repository).items())
        yield from sorted(pair for pair in found if pair[0].startswith(prefix))

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        """Also compares the file with the digest that the hub has of it. Raises DamagedFile if they differ."""
        file, location = self._file(uri), self._location(uri)
        digest = file.new_digest()
        with to.open("wb+") as copy:
            target, hashed, length = copy.fileno(), 0, part_bytes(file.size)

            def fetch(start: int) -> int:
                def put(position: int, data: bytes) -> None:
                    advance(len(data))  # ends this part if another file has failed
                    os.pwrite(target, data, position)

                end = min(start + length, file.size)
                read_range(location, start, end, put)
                return end

            parts = [self._pool.submit(fetch, start) for start in range(0, file.size, length)]
            try:
                for part in parts:  # hashed in order, while later parts arrive
                    end = part.result()
                    while hashed < end:
                        data = os.pread(target, min(READ_BYTES, end - hashed), hashed)
                        digest.update(data)
                        hashed += len(data)
            finally:
                for part in parts:
                    part.cancel()
                wait(parts)  # none may write once the file is closed, because its number is then that of another file
        if not file.is_file(digest):
            raise DamagedFile

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """Returns the failure for an error, or None if the error does not come from the hub."""
        own_login = self._bundle.job is None and get_token()
        pinned = self._commits.get(_split(uri)[0].uri)
        return failure_of_hub(error, Request(uri, place, self._bundle, bool(self._token() or own_login), pinned))

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        _never_written(uri)

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        _never_written(uri)

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        _never_written(uri)

    def copy(self, uri: str, to: str, advance: Callable[[int], None]) -> None:
        _never_written(to)

    def delete(self, uris: Iterable[str]) -> None:
        for uri in uris:
            _never_written(uri)

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        """Does nothing: a file is whole or not there."""

    def prune(self, folder: str) -> None:
        """Folders are only parts of names."""

    def _require_readable(self, uri: str) -> None:
        """Reads a byte of the file, because the list of files needs no permission to read them. Does so once for each
        repository: a hub allows an account to read all files of a repository, or none."""
        repository, _ = _split(uri)
        with self._asking:  # several threads may ask at the same time
            if repository not in self._readable:
                self.read(uri, 0, 1)
                self._readable.add(repository)

    def _range(self, uri: str, start: int, end: int) -> bytes:
        """Returns the bytes of a file from `start` to `end`, without the byte at `end`."""
        found = bytearray()
        read_range(self._location(uri), start, end, lambda position, data: found.extend(data))
        return bytes(found)

    def _location(self, uri: str) -> Location:
        repository, path = _split(uri)
        self._files(repository)
        if uri not in self._locations:
            url = hf_hub_url(
                repository.name,
                path,
                repo_type=repository.kind,
                revision=self._commits[repository.uri],
                endpoint=self._endpoint,
            )
            self._locations[uri] = Location(url, lambda: build_hf_headers(token=self._sent_token()))
        return self._locations[uri]

    def _file(self, uri: str) -> HubFile:
        """Returns the file. Raises NoSuchFile if the repository does not have it."""
        repository, path = _split(uri)
        found = self._files(repository).get(path)
        if found is None:
            raise NoSuchFile
        return found

    def _files(self, repository: hub.Repository) -> dict[str, HubFile]:
        """Returns the files of a repository by their paths. The first call decides the commit, if none is pinned."""
        if repository not in self._snapshots:
            commit, files = self._snapshot(repository)
            self._commits[repository.uri], self._snapshots[repository] = commit, files
        return self._snapshots[repository]

    def _snapshot(self, repository: hub.Repository) -> tuple[str, dict[str, HubFile]]:
        """Returns the commit of a repository and its files."""
        commit = self._commits.get(repository.uri) or self._hub.commit(repository, self._revision(repository))
        return commit, self._hub.files(repository, commit)

    def _revision(self, repository: hub.Repository) -> str:
        model = self._bundle.spec.model
        own = hub.split(model.uri)
        return (model.revision if own and own[0] == repository else None) or "main"

    def _token(self) -> str | None:
        """Returns the mounted token, as the Secret has it now; None if it cannot be sent in a header."""
        try:
            text = self._token_file.read_bytes().decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if re.fullmatch(r"[!-~]+", text) else None

    def _sent_token(self) -> Token:
        """Returns the token in the form of huggingface_hub. In a pod no other token than the mounted one is used. A
        local run also uses the token of the user's own login."""
        return self._token() or (False if self._bundle.job else None)


class _Reader(Ranges):
    """A stream over the ranges of a file."""

    def __init__(self, read: Callable[[str, int, int], bytes], uri: str, size: int) -> None:
        super().__init__(size)
        self._read, self._uri = read, uri

    def range(self, start: int, end: int) -> bytes:
        return self._read(self._uri, start, end)


def _split(uri: str) -> tuple[hub.Repository, str]:
    found = hub.split(uri)
    assert found, uri
    return found


def _never_written(uri: str) -> NoReturn:
    """The API server and `check_places` refuse a job that would write to a hub."""
    raise AssertionError(f"{uri} is only read")
