"""The connections of a proxy: one thread for each, which passes requests on and lets faults befall them."""

import http.client
import json
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import TYPE_CHECKING, Any

from tests.integration.calls import Call
from tests.integration.faults import EVENTS, REFUSALS, STALLS, WITHIN_THE_STREAM, Asked, Fault, Harm, Trouble, refusal

if TYPE_CHECKING:
    from tests.integration.api_proxy import ApiProxy

_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_PIECE = 65536


class ProxyServer(ThreadingHTTPServer):
    daemon_threads = True
    is_listening = True

    def __init__(self, listener: socket, proxy: "ApiProxy") -> None:
        self.proxy = proxy
        self.host, self.server_port = listener.getsockname()[:2]
        super().__init__((self.host, self.server_port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

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
    server: ProxyServer

    def setup(self) -> None:
        proxy = self.server.proxy
        if proxy.identity:
            self.request = proxy.identity.wrap_socket(self.request, server_side=True)
        super().setup()
        self._upstream: http.client.HTTPConnection = (
            http.client.HTTPSConnection(proxy.host, proxy.port, context=proxy.tls, timeout=600)
            if proxy.tls
            else http.client.HTTPConnection(proxy.host, proxy.port, timeout=600)
        )

    def finish(self) -> None:
        self._upstream.close()
        self.server.proxy.connections.pop(self.connection, None)
        super().finish()

    def _forward(self) -> None:
        proxy = self.server.proxy
        length = int(self.headers.get("Content-Length") or 0)
        trouble = proxy.trouble_of(Asked(self.command, self.path, self.headers.get("Authorization", "")))
        within = trouble is not None and trouble.harm is Harm.CUT_WITHIN_REQUEST
        data = self.rfile.read(length // 2 if within else length)
        proxy.connections[self.connection] = self.path
        call = Call(
            self.command, self.path.partition("?")[0], json.loads(data) if data and proxy.carries_json else None
        )
        if proxy.is_cut or proxy.springs(call):
            proxy.refused += proxy.is_cut
            self.close_connection = True
            return
        if proxy.busy and "watch=true" not in self.path:
            proxy.busy -= 1
            self._answer(429, proxy.refusal(429))
            return
        if trouble is not None and self._is_ended_by(trouble):
            return
        fault = proxy.fault_of(self.path)
        if fault is not None and fault not in WITHIN_THE_STREAM:
            self._fail(fault)
            return
        left_out = {*_ONE_HOP, "host"} if proxy.tls else _ONE_HOP
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        self._upstream.request(self.command, self.path, data, headers)
        answer = self._upstream.getresponse()
        call = replace(call, status=answer.status)
        proxy.calls.append(call)
        if proxy.springs(call):
            answer.read()
            self.close_connection = True
            return
        if trouble is not None and trouble.harm is Harm.CUT_WITHIN_ANSWER:
            self._pass_back_half(answer)
        else:
            self._pass_back(answer)

    def _is_ended_by(self, trouble: Trouble) -> bool:
        """Lets the trouble befall the request. Returns whether it has reached its end."""
        if trouble.harm is Harm.REFUSED:
            self._answer(trouble.code, self.server.proxy.refusal(trouble.code))
        elif trouble.harm is Harm.SLOW:
            time.sleep(trouble.seconds)
        self.close_connection = trouble.harm in (Harm.CUT, Harm.CUT_WITHIN_REQUEST)
        return trouble.harm is Harm.REFUSED or self.close_connection

    def _pass_back_half(self, answer: http.client.HTTPResponse) -> None:
        """Tells the whole length, and sends less."""
        whole = answer.read()
        self.send_response_only(answer.status)
        self.send_header("Content-Length", str(len(whole) + 1))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2])
        self.close_connection = True

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        """The answer as it comes: a watch has no end."""
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _ONE_HOP:
                self.send_header(name, value)
        if self.command == "HEAD" or answer.length is not None:
            whole = answer.read()
            # Of an answer to HEAD this is the length of what GET would get.
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        proxy = self.server.proxy
        while piece := answer.read1(_PIECE):
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
            self._answer(code, self.server.proxy.refusal(code))
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

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """The proxy keeps `calls` instead."""
