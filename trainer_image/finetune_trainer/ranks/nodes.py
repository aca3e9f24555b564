"""How the launchers of a training on several nodes find each other, before they start their ranks.

Node 0 has a name in DNS that does not change: its pod is the one with index 0 of an Indexed Job, behind a headless
Service. Does not import torch."""

import fcntl
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import StopRequested, TrainerFailure
from finetune_trainer.pod.running_time import RunningTime
from finetune_trainer.ranks.links import MOST_BYTES, Kind, Link, Links, Word, node_named

MEETING_SECONDS = 87_000.0
"""How long the first launchers wait for the last one, which is the time that the operator gives its pod: 10 minutes
until it has a node, and then up to 24 hours to download the image and the model. The operator ends the pods earlier if
it finds that one cannot start. So this limit counts only if the operator does not run."""
REACHING_SECONDS = 900.0
"""How long a launcher tries to reach node 0 while nothing answers. Where a pod starts, its node refuses the connection,
and before that DNS does not know its name. Otherwise the network between the nodes is broken, and the GPUs would wait
in vain."""
TOLD_SECONDS = 60.0
"""Interval at which a launcher says for whom it waits."""
LOOK_SECONDS = 0.5
HELLO_SECONDS = 2.0
"""How long a new connection may take to say which node it is from."""
UNKNOWN_NAME = {socket.EAI_NONAME, socket.EAI_NODATA}
"""Errors of DNS that are an answer: there is no such name yet."""
SIOCGIFADDR = 0x8915
"""Request of Linux for the IPv4 address of an interface, see netdevice(7)."""


@dataclass(frozen=True)
class Node:
    """The node of this pod among those of the training."""

    number: int = 0
    nodes: int = 1
    host: str = ""
    """Name or address of node 0. "" with one node."""
    port: int = 0
    """At which the launcher of node 0 listens. Rank 0 uses the next one."""
    name: str = ""
    """Name of this node in Kubernetes."""

    @property
    def store(self) -> str:
        """Where rank 0 tells the ranks of all nodes how to reach each other, as HOST:PORT. "" with one node."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port + 1}" if self.nodes > 1 else ""


@contextmanager
def links_of(here: Node, is_stopped: Callable[[], bool]) -> Iterator[Links]:
    """Connects this launcher with those of the other nodes, and says farewell at the end. Waits until all are there.

    `is_stopped`: whether the pod was asked to stop. Raises StopRequested if it was, here or on another node, and
    TrainerFailure PeerLost if a node does not come, or is gone again."""
    if here.nodes == 1:
        yield Links()
        return
    print(f"This is node {here.number} of {here.nodes}. It meets the others at {here.host}:{here.port}.", flush=True)
    links: list[Link] = []
    try:
        meet = _wait_for_others if here.number == 0 else _connect_to_first
        meet(here, links, is_stopped)
        yield (found := Links(here.number, links))
        found.close()
    except StopRequested:
        _send(links, Word(here.number, Kind.STOP))
        raise
    finally:
        for link in links:
            link.close()


class _Waiting:
    """The time for which this launcher has waited for others. It says so every minute."""

    def __init__(self) -> None:
        self._clock = RunningTime(HELLO_SECONDS + LOOK_SECONDS)
        self._told = self._answered = 0.0

    def seconds(self, what: str) -> float:
        """Returns the time so far. `what`: for whom this launcher waits now."""
        now = self._clock()
        if now - self._told >= TOLD_SECONDS:
            self._told = now
            print(f"Waiting for {what} for {now / 60:.0f} min.", flush=True)
        return now

    def unanswered(self, error: OSError) -> float:
        """Returns for how long nothing has answered. `error`: why the connection to node 0 was not made."""
        unknown = isinstance(error, socket.gaierror) and error.errno in UNKNOWN_NAME
        if unknown or isinstance(error, ConnectionRefusedError):
            self._answered = self._clock()
        return self._clock() - self._answered


def _wait_for_others(here: Node, links: list[Link], is_stopped: Callable[[], bool]) -> None:
    """Waits on node 0 until all others have connected, and tells them to begin."""
    waiting = _Waiting()
    with _listening(here.port) as listener:
        while len(links) < here.nodes - 1:
            if link := _accepted(listener, {*range(1, here.nodes)} - {link.node for link in links}):
                links.append(link)
            absent = sorted({*range(1, here.nodes)} - {link.node for link in links})
            _send(links, Word(here.number, Kind.ALIVE))
            _check(here, links, is_stopped)
            one = ", ".join(map(str, absent))
            if absent and waiting.seconds(f"node {one} of {here.nodes} (counted from 0)") > MEETING_SECONDS:
                finding = f"Node {one} of {here.nodes} (counted from 0) has not connected to node 0"
                raise _absent(finding, MEETING_SECONDS)
    _send(links, Word(here.number, Kind.BEGIN, name=here.name))


def _connect_to_first(here: Node, links: list[Link], is_stopped: Callable[[], bool]) -> None:
    """Connects to node 0, and waits until all others have done so too."""
    waiting = _Waiting()
    while not links:
        try:
            links.append(Link(0, socket.create_connection((here.host, here.port), HELLO_SECONDS)))
        except OSError as error:  # its name is not known yet, or it does not listen yet
            _check(here, links, is_stopped)
            said = error.strerror or error
            long = waiting.seconds(f"node 0 of {here.nodes} at {here.host}:{here.port} ({said})") > MEETING_SECONDS
            if long or waiting.unanswered(error) > REACHING_SECONDS:
                what = f"Node {here.number} of {here.nodes} (counted from 0) could not connect to node 0"
                limit = MEETING_SECONDS if long else REACHING_SECONDS
                raise _absent(f"{what} at {here.host}:{here.port} ({said})", limit) from error
            sleep(LOOK_SECONDS)
    _send(links, Word(here.number, Kind.HELLO, name=here.name))
    while Kind.BEGIN not in _check(here, links, is_stopped):
        waiting.seconds("the other nodes, which the log of node 0 names,")
        _send(links, Word(here.number, Kind.ALIVE))
        sleep(LOOK_SECONDS)


def _absent(finding: str, seconds: float) -> TrainerFailure:
    return TrainerFailure(FailureReason.PEER_LOST, f"{finding} for {seconds / 60:.0f} minutes.")


def _check(here: Node, links: list[Link], is_stopped: Callable[[], bool]) -> set[Kind]:
    """Returns the kinds of the words that have come. Raises what `links_of` raises."""
    if is_stopped():
        raise StopRequested
    heard: set[Kind] = set()
    for link in links:
        heard |= {word.kind for word in link.words(until=Kind.BEGIN)}
        if Kind.STOP in heard:
            raise StopRequested
        if link.broken and Kind.BEGIN not in heard:
            finding = (
                f"{node_named(link.node, here.nodes, link.name)} was lost before the training began: {link.broken}."
            )
            raise TrainerFailure(FailureReason.PEER_LOST, finding)
    return heard


def _send(links: list[Link], word: Word) -> None:
    for link in links:
        link.send(word)


def _listening(port: int) -> socket.socket:
    """Returns a socket that listens on all addresses of the pod, of IPv4 and of IPv6."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    listener.settimeout(LOOK_SECONDS)
    return listener


def _accepted(listener: socket.socket, awaited: set[int]) -> Link | None:
    """Returns a new connection of an awaited node; None if there is none. Others are closed."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    try:
        connection.settimeout(HELLO_SECONDS)
        line, rest = _first_line(connection)
        word = Word.parse(line)
        if word.kind is Kind.HELLO and word.node in awaited:
            return Link(word.node, connection, rest, word.name)
    except (OSError, ValueError):
        pass  # somebody else, such as a scanner of ports
    connection.close()
    return None


def _first_line(connection: socket.socket) -> tuple[bytes, bytes]:
    """Returns the first line that comes, and what came after it."""
    content = b""
    while b"\n" not in content and len(content) < MOST_BYTES:
        more = connection.recv(MOST_BYTES)
        if not more:
            break
        content += more
    line, _, rest = content.partition(b"\n")
    return line, rest


def interface_of(address: str) -> str | None:
    """Returns the name of the network interface that has this address; None if there is none."""
    if ":" in address:
        return _interface_with_ipv6(address)
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            try:
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


def _interface_with_ipv6(address: str) -> str | None:
    wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
    table = Path("/proc/net/if_inet6")
    rows = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    return next((row[5] for row in rows if row[0] == wanted), None)
