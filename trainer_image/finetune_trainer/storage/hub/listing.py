"""The commit of a repository on a hub, and the files that the repository has at this commit.

The list of files that the hub sends together with the commit is not used: the hub truncates it for large repositories
without saying so. The files are listed page by page instead.

huggingface_hub would follow the pages itself. It would wait without a limit for a page, and for as long as Retry-After
says, and it would send the token to the server that a page names as the next one."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined] # documented

from finetune_api.hub import Repository
from finetune_trainer.storage.hub.failures import NoHub
from finetune_trainer.storage.hub.requests import READ_SECONDS, patiently

COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
Token = str | bool | None
"""A token in the form of huggingface_hub."""
Digest = Any
"""An object of hashlib. Its type has no public name."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at a commit."""

    size: int
    blob: str
    """The sha1 that git gives the file, as hex. For a file in LFS, that of its pointer."""
    sha256: str | None
    """The sha256 of a file in LFS, as hex; None for other files."""

    def is_file(self, digest: Digest) -> bool:
        """Returns whether the bytes that `digest` has seen are this file."""
        return bool(digest.hexdigest() == (self.sha256 or self.blob))

    def new_digest(self) -> Digest:
        """Returns the digest that the hub has of this file, without any bytes."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {self.size}\0".encode())


@dataclass(frozen=True)
class Hub:
    """A hub that is asked about its repositories. Its methods raise NoHub if an answer has another form."""

    endpoint: str
    token: Callable[[], Token]
    """Returns the token for the next request."""

    def commit(self, repository: Repository, revision: str) -> str:
        """Returns the commit of a branch, a tag or a commit."""
        api = HfApi(endpoint=self.endpoint)

        def request() -> Any:
            return api.repo_info(
                repository.name,
                repo_type=repository.kind,
                revision=revision,
                timeout=READ_SECONDS,
                token=self.token(),
            )

        with _as_a_hub_answers():
            found = str(patiently(request).sha)
        if not COMMIT.fullmatch(found):
            raise NoHub
        return found

    def files(self, repository: Repository, commit: str) -> dict[str, HubFile]:
        """Returns all files of a commit by their paths."""
        with _as_a_hub_answers():
            entries = [entry for page in self._pages(repository, commit) for entry in page]
            found = [RepoFile(**entry) for entry in entries if entry["type"] == "file"]  # type: ignore[no-untyped-call]
            return {
                each.path: HubFile(int(each.size), str(each.blob_id), each.lfs.sha256 if each.lfs else None)
                for each in found
            }

    def _pages(self, repository: Repository, commit: str) -> Iterator[list[dict[str, Any]]]:
        """Yields the pages of the list. A page that fails is requested again alone, so that none is left out or read
        twice.

        Only the query of the next page is taken from the hub: a mirror may pass on the address of the hub behind it,
        which the pod cannot reach and which must not get the token."""
        url = f"{self.endpoint}/api/{repository.kind}s/{repository.name}/tree/{commit}"
        requested, query = {""}, "recursive=true"
        while query not in requested:
            requested.add(query)
            answer = patiently(lambda query=query: self._page(f"{url}?{query}"))  # type: ignore[misc]
            page = answer.json()
            if not isinstance(page, list):
                raise NoHub
            yield page
            if "next" not in answer.links:
                return
            query = urlsplit(answer.links["next"]["url"]).query
        raise NoHub  # the pages have no end

    def _page(self, url: str) -> Any:
        answer = get_session().get(url, headers=build_hf_headers(token=self.token()), timeout=READ_SECONDS)
        if answer.status_code == 404 and "X-Error-Code" not in answer.headers:
            raise NoHub  # it does not list files: a hub says what it does not have
        hf_raise_for_status(answer)
        return answer


@contextmanager
def _as_a_hub_answers() -> Iterator[None]:
    """Raises NoHub if the work inside cannot use an answer."""
    try:
        yield
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoHub from error
