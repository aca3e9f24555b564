"""Health probes over HTTP. A separate thread answers them, so they work even if all other threads hang.

`/healthz` is for the liveness probe, `/readyz` for the readiness probe: 200, or 503 with the reason in one sentence.
"""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

Answer = Callable[[], str | None]
"""Returns None if everything works, else a sentence about the fault."""


def serve(address: str, health: Answer, readiness: Answer) -> ThreadingHTTPServer:
    """Start to answer at `address`, HOST:PORT; port 0 means any free port.

    Raises OSError if the address cannot be bound, ValueError if it has no port."""
    parts = urlsplit(f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError(f'"{address}" is not HOST:PORT: use for example 0.0.0.0:8080')
    paths = {"/healthz": health, "/readyz": readiness}

    class Handler(_Handler):
        answers = paths

    server = ThreadingHTTPServer((parts.hostname, parts.port), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="probes", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, Answer]
    timeout = 5
    """Seconds after which the connection of a silent client is closed."""

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        trouble = answer() if answer else None
        text = (trouble or ("ok" if answer else "not found")).encode()
        self.send_response((503 if trouble else 200) if answer else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: the kubelet sends a request every few seconds."""
