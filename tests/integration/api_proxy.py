"""A proxy on the wire between the operator and the API server: it counts what the operator asks, and lets a test act at
a named moment, such as "the ServiceAccount was made, and the operator does not know it yet". It also breaks watches.

The operator speaks plain HTTP to the proxy, the proxy HTTPS to the API server. Nothing is changed on the way.
"""

import contextlib
import http.client
import json
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from tests.integration.faults import EVENTS, REFUSALS, STALLS, WITHIN_THE_STREAM, Fault, refusal

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
    def makes_groundwork(self) -> bool:
        """Whether it makes what all jobs of a namespace share."""
        return self.makes("serviceaccounts") or self.makes("rolebindings")

    @property
    def writes_status(self) -> bool:
        return self.method == "PATCH" and self.path.endswith("/status")


Matches = Callable[[Call], bool]


@dataclass(frozen=True)
class _Trap:
    matches: Matches
    answered: bool
    passes: bool
    action: Callable[[], None]


class ApiProxy:
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
        self.faults: dict[str, Fault] = {}
        """What befalls each watch of a path."""
        self.broken: Counter[str] = Counter()
        """How many watches of a path a fault has befallen since `break_watches`."""
        self.connections: dict[socket, str] = {}
        """Those that are open, with the path of the request that is answered there."""
        self.busy = 0
        """How many of the next requests are answered with 429, as by API Priority and Fairness. Watches are not."""
        self._traps: list[_Trap] = []
        self._listen(0)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.stop()

    def mend(self) -> None:
        """Takes back every fault and trap, so that a test that failed under one is the only one to fail."""
        self.is_cut, self.faults, self.busy = False, {}, 0
        self._traps.clear()
        if not self._server.is_listening:
            self._listen(self._server.server_port)

    def break_watches(self, faults: dict[str, Fault]) -> None:
        """From now on each watch of these paths meets its fault. Open ones are cut, so that they come anew."""
        self.faults, self.broken = faults, Counter()
        for connection, path in list(self.connections.items()):
            if path in faults:
                _cut(connection)

    def refuse_connections(self) -> None:
        """Nobody listens at `address` any more, and every connection is cut."""
        self._server.stop()
        for connection in list(self.connections):
            _cut(connection)

    def fault_of(self, path: str) -> Fault | None:
        """The fault of a request, with its query."""
        path, _, query = path.partition("?")
        return self.faults.get(path) if "watch=true" in query else None

    def _listen(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.proxy = self
        Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def writes(self, to: str = "") -> list[Call]:
        """Every write so far whose path or body names `to`."""
        return [call for call in self.calls if call.is_write and (to in call.path or to in json.dumps(call.body))]

    def reads(self, path: str) -> int:
        """How often the operator has looked at this object."""
        return sum(call.method == "GET" and call.path == path for call in self.calls)

    def before(self, matches: Matches, action: Callable[[], None]) -> None:
        """Once, when such a request comes: `action` instead of passing it on."""
        self._traps.append(_Trap(matches, False, False, action))

    def hold(self, matches: Matches, action: Callable[[], None]) -> None:
        """Once, when such a request comes: `action`, then it is passed on."""
        self._traps.append(_Trap(matches, False, True, action))

    def after(self, matches: Matches, action: Callable[[], None]) -> None:
        """Once, when such a request was answered: `action` instead of passing the answer back."""
        self._traps.append(_Trap(matches, True, False, action))

    def springs(self, call: Call) -> bool:
        """Whether a trap for this call takes the place of what would come next. Its action is done then."""
        for trap in self._traps:
            if trap.answered == bool(call.status) and trap.matches(call):
                self._traps.remove(trap)
                trap.action()
                return not trap.passes
        return False


def _cut(connection: socket) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connection.shutdown(SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: ApiProxy
    is_listening = True

    def stop(self) -> None:
        self.is_listening = False
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An operator that was killed leaves broken connections behind."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of the operator, with one of its own to the API server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        proxy = self.server.proxy
        self._upstream = http.client.HTTPSConnection(proxy.host, proxy.port, context=proxy.tls, timeout=600)

    def finish(self) -> None:
        self._upstream.close()
        self.server.proxy.connections.pop(self.connection, None)
        super().finish()

    def _forward(self) -> None:
        proxy = self.server.proxy
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.connections[self.connection] = self.path.partition("?")[0]
        call = Call(self.command, self.path.partition("?")[0], json.loads(data) if data else None)
        if proxy.is_cut or proxy.springs(call):
            proxy.refused += proxy.is_cut
            self.close_connection = True
            return
        if proxy.busy and "watch=true" not in self.path:
            proxy.busy -= 1
            self._answer(429, json.dumps(refusal(429)).encode())
            return
        fault = proxy.fault_of(self.path)
        if fault is not None and fault not in WITHIN_THE_STREAM:
            self._fail(fault)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _ONE_HOP}
        self._upstream.request(self.command, self.path, data, headers)
        answer = self._upstream.getresponse()
        call = replace(call, status=answer.status)
        proxy.calls.append(call)
        if proxy.springs(call):
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
        proxy = self.server.proxy
        while piece := answer.read1(65536):
            if proxy.is_cut:
                self.close_connection = True
                return  # without the last chunk: whoever reads is told that there was more
            if fault := proxy.fault_of(self.path):
                self._break_off(fault, piece)
                return
            self._write_chunk(piece)
        self._write_chunk(b"")

    def _break_off(self, fault: Fault, piece: bytes) -> None:
        """A stream that has something to say ends at or within it. The faults of earlier stages cut it here."""
        self.server.proxy.broken[self.path.partition("?")[0]] += 1
        within = fault in (Fault.CUT_WITHIN_A_LINE, Fault.TORN)
        self._write_chunk(piece[: len(piece) // 2] if within else piece)
        if fault is Fault.TORN:
            self._write_chunk(b"")
        self.close_connection = True

    def _fail(self, fault: Fault) -> None:
        """Answer in place of the API server, or not at all."""
        self.server.proxy.broken[self.path.partition("?")[0]] += 1
        self.close_connection = True
        if code := REFUSALS.get(fault):
            self._answer(code, json.dumps(refusal(code)).encode())
        elif code := EVENTS.get(fault):
            event = {"type": "ERROR", "object": refusal(code)}
            self._answer(200, json.dumps(event).encode() + b"\n")
        elif fault is Fault.NO_JSON:
            self._answer(200, b"<html>Bad gateway</html>\n")
        elif fault is not Fault.CUT_BEFORE_HEADERS:
            if fault is not Fault.STALLED_BEFORE_HEADERS:
                self.send_response_only(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
            if fault in STALLS:
                self.rfile.read(1)  # until the operator gives up

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def _write_chunk(self, piece: bytes) -> None:
        """The empty one is the last."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """The proxy keeps `calls` instead."""
