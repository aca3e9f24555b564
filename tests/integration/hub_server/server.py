"""A model hub with the protocol that huggingface_hub uses: repositories with commits, gated and private ones, files in
git and in LFS, redirects to a second server with signed URLs, ranges, and faults."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.integration.hub_server.protocol import HubHandler
from tests.integration.hub_server.state import Hub
from tests.integration.hub_server.storage import StorageHandler

Listen = Callable[[int], socket.socket]


def on_loopback(port: int) -> socket.socket:
    """A socket for processes of this machine."""
    return socket.create_server(("127.0.0.1", port), backlog=128)


class HubServer(Hub):
    """The hub and its storage, each on its own port."""

    def __init__(self, listen: Listen) -> None:
        """`listen`: returns a socket that listens at a port, 0 for any. Its address is that of the servers."""
        super().__init__()
        handlers = {"hub": HubHandler, "storage": StorageHandler}
        self._servers = [
            _serve(listen(0), type("Handler", (handler,), {"hub": self, "part": part}))
            for part, handler in handlers.items()
        ]
        addresses = (server.socket.getsockname() for server in self._servers)
        self.endpoint, self.storage = (f"http://{host}:{port}" for host, port in addresses)
        self.linked = self.endpoint

    def close(self) -> None:
        """Ends both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def running_hub(listen: Listen = on_loopback) -> Iterator[HubServer]:
    """A hub that runs inside the context."""
    server = HubServer(listen)
    try:
        yield server
    finally:
        server.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves a broken connection behind, which is no error of a test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _serve(listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = _Server(listener.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
