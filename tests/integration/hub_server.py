"""A model hub with the protocol that huggingface_hub uses: repositories with commits, gated and private ones, files in
git and in LFS, redirects to a second server with signed URLs, ranges, and faults.

Run it with `python -m tests.integration.hub_server FOLDER`: every FOLDER/ORG/NAME is a public model."""

import hashlib
import hmac
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Barrier, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_BYTES = 2000
"""Files of this size and larger are in LFS, as are all .safetensors files."""
SIBLINGS = 2
"""Number of files that the hub names together with a commit. The others are left out without a word, as the public hub
does in large repositories."""
PAGE = 4
"""Number of files and folders on a page of a list."""
VALID_SECONDS = 3600
Listen = Callable[[int], socket.socket]


def on_loopback(port: int) -> socket.socket:
    """A socket for processes of this machine."""
    return socket.create_server(("127.0.0.1", port), backlog=128)


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


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    server: str
    """hub or storage."""
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Faults:
    """What goes wrong. Each count is used up by the requests that it harms."""

    busy: int = 0
    """Requests that are answered with 429."""
    retry_after: int = 0
    """Retry-After of those answers."""
    broken: int = 0
    """Requests that are answered with 503."""
    cuts: int = 0
    """Contents of the storage of more than one byte whose connection is cut after half of the bytes."""
    broken_pages: int = 0
    """Requests for a page of a list after the first one that are answered with 503."""
    cut_pages: int = 0
    """Pages of a list after the first one whose connection is cut after half of the bytes."""
    endless: bool = False
    """Whether the last page of a list names itself as the next one."""
    unlisted: bool = False
    """Whether the hub has no lists of files."""
    list: str | None = None
    """The answer to every request for a list."""
    expired: int = 0
    """Requests to the storage that are refused as if their signature had expired."""
    together: Barrier | None = None
    """What the refused requests wait for before they are answered, so that all are answered at the same time."""
    whole: bool = False
    """Whether ranges are ignored."""
    silent: bool = False
    """Whether the answers to ranges have no content."""
    page: str | None = None
    """A page that is the answer to every request to the hub, as a login page of a network."""


class HubServer:
    """The hub and its storage, each on its own port."""

    def __init__(self, listen: Listen) -> None:
        """`listen`: returns a socket that listens at a port, 0 for any. Its address is that of the servers."""
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, set[str]] = {}
        """The repositories (ORG/NAME or datasets/ORG/NAME) that the account of each token may read."""
        self.asked: list[Asked] = []
        self.faults = Faults()
        self._lock, self._key = Lock(), b"the key of the signatures"
        self._objects: dict[str, bytes] = {}
        self._flipped: dict[str, bytes] = {}
        self._servers = [_serve(listen(0), _handler(self, part)) for part in ("hub", "storage")]
        addresses = (server.socket.getsockname() for server in self._servers)
        self.endpoint, self.storage = (f"http://{host}:{port}" for host, port in addresses)
        self.linked = self.endpoint
        """The server of the link to the next page of a list. A mirror may pass on the links of the hub behind it."""

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def commit(self, name: str, files: Mapping[str, bytes] | Path, ref: str = "main", **about: Any) -> str:
        """Adds a commit with exactly these files to a repository, and moves the branch or tag to it. Returns it."""
        found = _read(files) if isinstance(files, Path) else files
        whole = {
            path: File(data, len(data) >= LFS_BYTES or path.endswith(".safetensors")) for path, data in found.items()
        }
        repository = self.repositories.setdefault(name, Repository(**about))
        text = json.dumps([name, len(repository.commits), sorted((path, file.blob) for path, file in whole.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository.commits[commit] = whole
        repository.refs[ref] = commit
        self._objects |= {file.sha256: file.data for file in whole.values() if file.lfs}
        return commit

    def flip(self, name: str, path: str) -> None:
        """Changes a byte of this file in all commits of a repository, but not its digest. Files with the same content
        change as well."""
        for files in self.repositories[name].commits.values():
            if path in files:
                file = files[path]
                changed = file.data[:-1] + bytes([file.data[-1] ^ 1])
                self._objects[file.sha256] = self._flipped[file.blob] = changed

    def content_of(self, file: "File") -> bytes:
        """What the hub sends of a file in git."""
        return self._flipped.get(file.blob, file.data)

    def paths(self, server: str) -> Counter[str]:
        """How often each path was requested from the hub or the storage."""
        return Counter(asked.path for asked in self.asked if asked.server == server)

    def note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)

    def used_up(self, fault: str) -> bool:
        """Whether this request has the fault, of which there is then one less."""
        with self._lock:
            left = getattr(self.faults, fault)
            setattr(self.faults, fault, max(0, left - 1))
            return bool(left)

    def signed(self, sha256: str) -> str:
        until = str(int(time.time()) + VALID_SECONDS)
        return f"{self.storage}/objects/{sha256}?until={until}&signature={self._signature(sha256, until)}"

    def object(self, url: str) -> bytes | None:
        """The object at a signed URL; None if the signature is not valid."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        sha256 = parts.path.removeprefix("/objects/")
        until = query.get("until", "0")
        right = hmac.compare_digest(query.get("signature", ""), self._signature(sha256, until))
        return self._objects.get(sha256) if right and int(until) > time.time() else None

    def _signature(self, sha256: str, until: str) -> str:
        return hmac.new(self._key, f"{sha256} {until}".encode(), "sha256").hexdigest()


@contextmanager
def running_hub(listen: Listen = on_loopback) -> Iterator[HubServer]:
    """A hub that runs inside the context."""
    server = HubServer(listen)
    try:
        yield server
    finally:
        server.close()


def _read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _entries(files: Mapping[str, File]) -> list[dict[str, Any]]:
    """The files and folders of a commit, as the API lists them."""
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
    found = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
    return sorted(found + [file.described(path) for path, file in files.items()], key=lambda entry: str(entry["path"]))


def _serve(listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(listener.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def _handler(server: HubServer, part: str) -> type[BaseHTTPRequestHandler]:
    """The handler of one of the two servers."""
    return type("Handler", (_Hub if part == "hub" else _Storage,), {"server_of": server, "part": part})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: HubServer
    part: str

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        self._begin()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _begin(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_of.note(Asked(self.part, self.command, path, self.headers.get("Range"), self.token))
        try:
            self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", cut: bool = False, **headers: str) -> None:
        """`cut`: the connection ends after half of the body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def error(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.reply(status, body, X_Error_Code=code, X_Error_Message=message, **headers)

    def content(self, data: bytes, may_cut: bool = False, **headers: str) -> None:
        """The whole file, or the requested range of it. `may_cut`: whether the fault `cuts` is that of this server."""
        wanted = self.headers.get("Range")
        start, end, status = 0, len(data), 200
        if wanted and not self.server_of.faults.whole:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
            end = start if self.server_of.faults.silent else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.send_response(status)
        for name, value in {"Content-Length": str(end - start), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        cut = may_cut and end - start > 1 and self.server_of.used_up("cuts")
        if self.command != "HEAD":
            self.wfile.write(memoryview(data)[start : (start + end) // 2 if cut else end])
        if cut:
            self.close_connection = True


class _Storage(_Handler):
    """Serves the files in LFS at signed URLs. It knows no tokens."""

    def answer(self) -> None:
        data = self.server_of.object(self.path)
        if data is None or self.server_of.used_up("expired"):
            if together := self.server_of.faults.together:
                together.wait(timeout=30)
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        self.content(data, may_cut=True)


class _Hub(_Handler):
    def answer(self) -> None:
        faults = self.server_of.faults
        if faults.page:
            self.reply(200, faults.page.encode(), Content_Type="text/html")
        elif self.server_of.used_up("busy"):
            self.error(429, "", "Too many requests", Retry_After=str(faults.retry_after))
        elif self.server_of.used_up("broken"):
            self.error(503, "", "Service unavailable")
        else:
            self._route()

    def _route(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        routes: dict[str, Callable[[str, str, str], None]] = {
            "revision": self._info,
            "tree": self._tree,
            "resolve": self._resolve,
        }
        if parts[:2] == ["api", "resolve-cache"]:
            kind, *rest = parts[2:]
            name, rest = ("datasets/" if kind == "datasets" else "") + "/".join(rest[:2]), ["cached", *rest[2:]]
            routes["cached"] = self._cached
        elif parts[0] == "api":
            name, rest = ("datasets/" if parts[1] == "datasets" else "") + "/".join(parts[2:4]), parts[4:]
        else:
            count = 3 if parts[0] == "datasets" else 2
            name, rest = "/".join(parts[:count]), parts[count:]
        if len(rest) < 2 or rest[0] not in routes:
            self.error(404, "", "Sorry, we can't find the page you are looking for.")
        elif self._may_see(name, rest[0]):
            routes[rest[0]](name, unquote(rest[1]), unquote("/".join(rest[2:])))

    def _may_see(self, name: str, route: str) -> bool:
        """Whether the account may see this part of the repository. Answers if not, as the public hub does."""
        found, token = self.server_of.repositories.get(name), self.token
        if token and token not in self.server_of.tokens:
            self.error(401, "", "Invalid credentials in Authorization header")
            return False
        readable = bool(token) and name in self.server_of.tokens[token or ""]
        if found is None or (found.private and not readable):
            self.error(404 if token else 401, "RepoNotFound", "Repository not found")
            return False
        if found.gated and route in ("resolve", "cached") and not readable:
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            self.error(403 if token else 401, "GatedRepo", message)
            return False
        return True

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, File]] | None:
        """The commit and its files. Answers if there is no such revision."""
        repository = self.server_of.repositories[name]
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, repository.commits[commit]

    def _json(self, value: Any, cut: bool = False, **headers: str) -> None:
        self.reply(200, json.dumps(value).encode(), cut, Content_Type="application/json; charset=utf-8", **headers)

    def _info(self, name: str, revision: str, path: str) -> None:
        if found := self._files(name, revision):
            commit, files = found
            repository = self.server_of.repositories[name]
            about = {"private": repository.private, "gated": "manual" if repository.gated else False}
            siblings = [{"rfilename": path} for path in sorted(files)[:SIBLINGS]]
            self._json({"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings, **about})

    def _tree(self, name: str, revision: str, path: str) -> None:
        faults = self.server_of.faults
        if faults.unlisted or faults.list:
            self.reply(404 if faults.unlisted else 200, (faults.list or "Not found").encode())
        elif found := self._files(name, revision):
            query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            assert query.get("recursive") == "true", "other lists are not served"
            start = int(query.get("cursor", "0"))
            if start and self.server_of.used_up("broken_pages"):
                self.error(503, "", "Service unavailable")
            else:
                self._list(_entries(found[1]), start, cut=bool(start) and self.server_of.used_up("cut_pages"))

    def _list(self, entries: list[dict[str, Any]], start: int, cut: bool) -> None:
        """A page of a list, from `start`."""
        following = start if self.server_of.faults.endless else start + PAGE
        url = f"{self.server_of.linked}{urlsplit(self.path).path}?recursive=true&cursor={following}"
        more = {"Link": f'<{url}>; rel="next"'} if following < len(entries) else {}
        self._json(entries[start : start + PAGE], cut, **more)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self._files(name, revision)):
            return
        commit, files = found
        if path not in files:
            self.error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
            return
        file = files[path]
        etag = file.sha256 if file.lfs else file.blob
        linked = {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(file.data)), "X_Repo_Commit": commit}
        if file.lfs:
            self.reply(302, b"Found", Location=self.server_of.signed(file.sha256), **linked)
            return
        kind, _, rest = name.partition("/") if name.startswith("datasets/") else ("models", "", name)
        self.reply(307, b"", Location=f"/api/resolve-cache/{kind}/{rest}/{commit}/{quote(path)}", **linked)

    def _cached(self, name: str, commit: str, path: str) -> None:
        if found := self._files(name, commit):
            file = found[1][path]
            self.content(self.server_of.content_of(file), ETag=f'"{file.blob}"', X_Repo_Commit=commit)


if __name__ == "__main__":
    hub = HubServer(on_loopback)
    for config in Path(sys.argv[1]).glob("*/*/config.json"):
        hub.commit("/".join(config.parts[-3:-1]), config.parent)
    print(hub.endpoint, flush=True)
    sys.stdin.read()
