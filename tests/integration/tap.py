"""A tap on the wire between the operator and the API server: it counts what the operator asks, and lets a test act at
a named moment, such as "the ServiceAccount was made, and the operator does not know it yet".

The operator speaks plain HTTP to the tap, the tap HTTPS to the API server. Nothing is changed on the way.
"""

import http.client
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Call:
    """One request of the operator; `status` is the answer's HTTP code, 0 while there is none."""

    method: str
    path: str
    body: Any = None
    status: int = 0

    @property
    def is_write(self) -> bool:
        return self.method != "GET"

    def makes(self, resource: str) -> bool:
        return self.method == "POST" and self.path.endswith(f"/{resource}")

    @property
    def writes_status(self) -> bool:
        return self.method == "PATCH" and self.path.endswith("/status")


Matches = Callable[[Call], bool]


@dataclass(frozen=True)
class _Trap:
    matches: Matches
    answered: bool
    action: Callable[[], None]


class Tap:
    """Listens on loopback at `address` and forwards to `server`."""

    def __init__(self, server: str, authority: Path) -> None:
        upstream = urlsplit(server)
        self.host, self.port = str(upstream.hostname), int(upstream.port or 443)
        self.tls = ssl.create_default_context(cafile=str(authority))
        self.calls: list[Call] = []
        self.is_cut = False
        """While true, the API server seems to be away."""
        self.refused = 0
        """Requests that came in that time."""
        self.broken_watch = ""
        """While it names a path, each watch of it that has something to say ends in the middle of it, as if that were
        all."""
        self._traps: list[_Trap] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.tap = self
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def mend(self) -> None:
        """Takes back every fault and trap, so that a test that failed under one is the only one to fail."""
        self.is_cut, self.broken_watch = False, ""
        self._traps.clear()

    def writes(self, to: str = "") -> list[Call]:
        """Every write so far whose path or body names `to`."""
        return [call for call in self.calls if call.is_write and (to in call.path or to in json.dumps(call.body))]

    def reads(self, path: str) -> int:
        """How often the operator has looked at this object."""
        return sum(call.method == "GET" and call.path == path for call in self.calls)

    def before(self, matches: Matches, action: Callable[[], None]) -> None:
        """Once, when such a request comes: `action` instead of passing it on."""
        self._traps.append(_Trap(matches, False, action))

    def after(self, matches: Matches, action: Callable[[], None]) -> None:
        """Once, when such a request was answered: `action` instead of passing the answer back."""
        self._traps.append(_Trap(matches, True, action))

    def springs(self, call: Call) -> bool:
        """Whether a trap was set for this call; then its action is done."""
        for trap in self._traps:
            if trap.answered == bool(call.status) and trap.matches(call):
                self._traps.remove(trap)
                trap.action()
                return True
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tap: Tap

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An operator that was killed leaves broken connections behind."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of the operator, with one of its own to the API server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        tap = self.server.tap
        self._upstream = http.client.HTTPSConnection(tap.host, tap.port, context=tap.tls, timeout=600)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def _forward(self) -> None:
        tap = self.server.tap
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(self.command, self.path.partition("?")[0], json.loads(data) if data else None)
        if tap.is_cut or tap.springs(call):
            tap.refused += tap.is_cut
            self.close_connection = True
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _ONE_HOP}
        self._upstream.request(self.command, self.path, data, headers)
        answer = self._upstream.getresponse()
        call = replace(call, status=answer.status)
        tap.calls.append(call)
        if tap.springs(call):
            answer.read()
            self.close_connection = True
            return
        self._pass_back(answer)

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        """The answer as it comes: a watch has no end."""
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _ONE_HOP:
                self.send_header(name, value)
        if answer.length is not None:
            whole = answer.read()
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tap = self.server.tap
        while piece := answer.read1(65536):
            if tap.is_cut:
                self.close_connection = True
                return  # without the last chunk: whoever reads is told that there was more
            broken = self.path.startswith(f"{tap.broken_watch}?watch=true")
            piece = piece[: len(piece) // 2] if broken else piece
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if broken:
                break
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """The tap keeps `calls` instead."""
