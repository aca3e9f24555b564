"""What the hub and its storage know, and the requests that they got."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tests.integration.hub_server.faults import Faults
from tests.integration.hub_server.objects import SignedObjects
from tests.integration.hub_server.repositories import File, Repository


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    server: str
    """hub or storage."""
    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The repositories, the accounts and the faults. Tests change them while the servers run."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, set[str]] = {}
        """The repositories (ORG/NAME or datasets/ORG/NAME) that the account of each token may read."""
        self.asked: list[Asked] = []
        self.faults = Faults()
        self.endpoint = self.storage = ""
        """The URLs of the two servers."""
        self.linked = ""
        """The server of the link to the next page of a list. A mirror may pass on the links of the hub behind it."""
        self.objects = SignedObjects()
        self._flipped: dict[str, bytes] = {}
        self._lock = Lock()

    def commit(self, name: str, files: Mapping[str, bytes] | Path, ref: str = "main", **about: Any) -> str:
        """Adds a commit with exactly these files to a repository, and moves the branch or tag to it. Returns it."""
        repository = self.repositories.setdefault(name, Repository(**about))
        commit = repository.commit(name, files, ref)
        for file in repository.commits[commit].values():
            if file.lfs:
                self.objects.put(file.sha256, file.data)
        return commit

    def flip(self, name: str, path: str) -> None:
        """Changes a byte of this file in all commits of a repository, but not its digest. Files with the same content
        change as well."""
        for files in self.repositories[name].commits.values():
            if path in files:
                file = files[path]
                changed = file.data[:-1] + bytes([file.data[-1] ^ 1])
                self._flipped[file.blob] = changed
                self.objects.put(file.sha256, changed)

    def content_of(self, file: File) -> bytes:
        """What the hub sends of a file in git."""
        return self._flipped.get(file.blob, file.data)

    def signed(self, sha256: str) -> str:
        """A signed URL of a file in LFS."""
        return self.storage + self.objects.path(sha256)

    def paths(self, server: str) -> Counter[str]:
        """How often each path was requested from the hub or the storage."""
        return Counter(asked.path for asked in self.asked if asked.server == server)

    def note(self, asked: Asked) -> None:
        """Keeps a request that arrived."""
        with self._lock:
            self.asked.append(asked)
