"""Answers over HTTP: what the servers of the hub and of its storage have in common."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.integration.hub_server.state import Asked, Hub


class Handler(BaseHTTPRequestHandler):
    """Notes each request and answers it."""

    protocol_version = "HTTP/1.1"
    hub: Hub
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
        self.hub.note(Asked(self.part, self.command, path, self.headers.get("Range"), self.token))
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
        if wanted and not self.hub.faults.whole:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
            end = start if self.hub.faults.silent else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.send_response(status)
        for name, value in {"Content-Length": str(end - start), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        cut = may_cut and end - start > 1 and self.hub.faults.used_up("cuts")
        if self.command != "HEAD":
            self.wfile.write(memoryview(data)[start : (start + end) // 2 if cut else end])
        if cut:
            self.close_connection = True
