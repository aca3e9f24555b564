"""The protocol of the hub: what it answers to each path, and to whom."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.integration.hub_server.handler import Handler
from tests.integration.hub_server.repositories import File, entries

SIBLINGS = 2
"""Number of files that the hub names together with a commit. The others are left out without a word, as the public hub
does in large repositories."""
PAGE = 4
"""Number of files and folders on a page of a list."""


class HubHandler(Handler):
    """Serves the lists of files, and the files in git. Redirects to the storage for files in LFS."""

    def answer(self) -> None:
        faults = self.hub.faults
        if faults.page:
            self.reply(200, faults.page.encode(), Content_Type="text/html")
        elif self.hub.faults.used_up("busy"):
            self.error(429, "", "Too many requests", Retry_After=str(faults.retry_after))
        elif self.hub.faults.used_up("broken"):
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
        found, token = self.hub.repositories.get(name), self.token
        if token and token not in self.hub.tokens:
            self.error(401, "", "Invalid credentials in Authorization header")
            return False
        readable = bool(token) and name in self.hub.tokens[token or ""]
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
        repository = self.hub.repositories[name]
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
            repository = self.hub.repositories[name]
            about = {"private": repository.private, "gated": "manual" if repository.gated else False}
            siblings = [{"rfilename": path} for path in sorted(files)[:SIBLINGS]]
            self._json({"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings, **about})

    def _tree(self, name: str, revision: str, path: str) -> None:
        faults = self.hub.faults
        if faults.unlisted or faults.list:
            self.reply(404 if faults.unlisted else 200, (faults.list or "Not found").encode())
        elif found := self._files(name, revision):
            query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            assert query.get("recursive") == "true", "other lists are not served"
            start = int(query.get("cursor", "0"))
            if start and self.hub.faults.used_up("broken_pages"):
                self.error(503, "", "Service unavailable")
            else:
                self._list(entries(found[1]), start, cut=bool(start) and self.hub.faults.used_up("cut_pages"))

    def _list(self, listed: list[dict[str, Any]], start: int, cut: bool) -> None:
        """A page of a list, from `start`."""
        following = start if self.hub.faults.endless else start + PAGE
        url = f"{self.hub.linked}{urlsplit(self.path).path}?recursive=true&cursor={following}"
        more = {"Link": f'<{url}>; rel="next"'} if following < len(listed) else {}
        self._json(listed[start : start + PAGE], cut, **more)

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
            self.reply(302, b"Found", Location=self.hub.signed(file.sha256), **linked)
            return
        kind, _, rest = name.partition("/") if name.startswith("datasets/") else ("models", "", name)
        self.reply(307, b"", Location=f"/api/resolve-cache/{kind}/{rest}/{commit}/{quote(path)}", **linked)

    def _cached(self, name: str, commit: str, path: str) -> None:
        if found := self._files(name, commit):
            file = found[1][path]
            self.content(self.hub.content_of(file), ETag=f'"{file.blob}"', X_Repo_Commit=commit)
