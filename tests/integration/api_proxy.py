"""A proxy on the wire between a client and the API server, or between pods and S3: it counts what is asked, and lets a
test act at a named moment, such as "the ServiceAccount was made, and the operator does not know it yet". It also breaks
watches, and troubles a share of all requests.

The operator of a test speaks plain HTTP to the proxy. Pods speak HTTPS to it, as to the API server. Nothing is changed
on the way.
"""

import contextlib
import json
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from socket import SHUT_RDWR, create_server, socket
from threading import Thread
from urllib.parse import urlsplit

from devcluster.ports import free_ports
from tests.integration.calls import Call
from tests.integration.faults import Asked, Fault, Harm, Trouble, refusal
from tests.integration.proxy_server import ProxyServer

Identity = tuple[Path, Path]
"""Files of a server's certificate and its key."""


Matches = Callable[[Call], bool]


@dataclass(frozen=True)
class _Trap:
    matches: Matches
    answered: bool
    passes: bool
    action: Callable[[], None]


def on_loopback(port: int) -> socket:
    """Returns a socket that listens on this machine only; port 0 takes one that stays free when it does not listen."""
    return create_server(("127.0.0.1", port or free_ports(1)[0]), backlog=128)


class ApiProxy:
    """Listens on loopback at `address`, or where `listen` does, and forwards to `server`.

    `authority`: certificate of the authority of `server`, if that speaks HTTPS. `identity`: with which the proxy itself
    speaks HTTPS. `seed`: of the choice which requests a trouble befalls."""

    carries_json = True

    def __init__(
        self,
        server: str,
        authority: Path | None = None,
        listen: Callable[[int], socket] = on_loopback,
        port: int = 0,
        identity: Identity | None = None,
        seed: int = 0,
    ) -> None:
        upstream = urlsplit(server)
        self.host, self.port = str(upstream.hostname), int(upstream.port or 443)
        self.tls = ssl.create_default_context(cafile=str(authority)) if authority else None
        self.identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if identity else None
        if self.identity and identity:
            self.identity.load_cert_chain(*identity)
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
        self.troubles: Sequence[Trouble] = ()
        """What befalls shares of the requests that come. At most one befalls a request."""
        self.troubled: Counter[Harm] = Counter()
        """How many requests each harm has befallen."""
        self._random = Random(seed)
        self._traps: list[_Trap] = []
        self._listen_at = listen
        self._listen(port)
        self.address = f"{'https' if identity else 'http'}://{self._server.host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.stop()

    def mend(self) -> None:
        """Takes back every fault and trap, so that a test that failed under one is the only one to fail."""
        self.is_cut, self.faults, self.busy, self.troubles = False, {}, 0, ()
        self._traps.clear()
        if not self._server.is_listening:
            self._listen(self._server.server_port)

    def break_watches(self, faults: dict[str, Fault]) -> None:
        """From now on each watch of these paths meets its fault. Open ones are cut, so that they come anew."""
        self.faults, self.broken = faults, Counter()
        for connection, path in list(self.connections.items()):
            if path.partition("?")[0] in faults:
                _cut(connection)

    def cut_watches(self) -> None:
        """Cuts every open watch once."""
        for connection, path in list(self.connections.items()):
            if "watch=true" in path:
                _cut(connection)

    def trouble_of(self, asked: Asked) -> Trouble | None:
        """What befalls this request."""
        for trouble in self.troubles:
            if trouble.matches(asked) and self._random.random() < trouble.share:
                self.troubled[trouble.harm] += 1
                return trouble
        return None

    def refusal(self, code: int) -> bytes:
        """The body with which the server refuses."""
        return json.dumps(refusal(code)).encode()

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
        self._server = ProxyServer(self._listen_at(port), self)
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


class S3Proxy(ApiProxy):
    """A proxy between pods and S3. Signatures include the Host header, so it is passed on as it came."""

    carries_json = False

    def refusal(self, code: int) -> bytes:
        """The body with which S3 refuses."""
        word = {503: "SlowDown", 429: "TooManyRequests", 403: "InvalidAccessKeyId"}.get(code, "InternalError")
        return f"<Error><Code>{word}</Code><Message>the proxy says {code}</Message></Error>".encode()
