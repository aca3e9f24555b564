"""The connections between the launchers of a training on several nodes, and what they tell each other.

Each pod has one launcher. The launcher of node 0 listens, and those of the other nodes connect to it. It passes on to
the others what one of them tells. A launcher is lost if it is silent for too long, or if its connection breaks without
a farewell: its pod was killed, its node has failed, or the network is cut. Does not import torch."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from select import select
from time import monotonic

from finetune_api.bundle import TerminationMessage
from finetune_trainer.pod.running_time import RunningTime

SILENCE_SECONDS = 20.0
"""A launcher that has been silent for so long is lost. Each one says several times in this time that it is alive."""
MOST_BETWEEN_LOOKS = 2.0
"""A longer time between two looks was one in which the launcher did not run. It may have missed words meanwhile."""
ALIVE_SECONDS = 2.0
"""Interval at which a launcher says that it is alive."""
SEND_SECONDS = 1.0
"""How long a word may take to be sent."""
MOST_BYTES = 65_536
"""Most bytes of a word. A longer one is not from a launcher."""
CLOSED = "the connection was closed"
"""What shows that a launcher is gone. Whether the system calls it an end, a reset or a broken pipe is chance."""


class Kind(StrEnum):
    """What a word says about a node."""

    HELLO = "Hello"
    """It has connected."""
    BEGIN = "Begin"
    """All nodes have connected: the ranks may start."""
    ARRIVED = "Arrived"
    """All its ranks are ready to meet those of the other nodes."""
    ALIVE = "Alive"
    """It goes on."""
    STOP = "Stop"
    """Its pod was asked to stop."""
    CAUSE = "Cause"
    """One of its ranks has failed, and all others have to end at once."""
    LOSS = "Loss"
    """One of its ranks has ended. The others will find out why themselves."""
    PUBLISHED = "Published"
    """Rank 0 has ended well: the results are published."""
    ENDED = "Ended"
    """All its ranks have ended."""
    LOST = "Lost"
    """It does not answer any more. Never sent: the launcher that notices it tells it itself."""


@dataclass(frozen=True)
class Word:
    """What a launcher tells the others."""

    node: int
    """Number of its node."""
    kind: Kind
    cause: TerminationMessage | None = None
    """With CAUSE: why the training ends."""
    why: str = ""
    """With LOST: what shows it."""
    name: str = ""
    """With HELLO, BEGIN and LOST: name of the node in Kubernetes, if it is known."""

    def line(self) -> bytes:
        """Returns the word as one line of JSON."""
        said = {"node": self.node, "kind": self.kind, "why": self.why, "name": self.name}
        cause = self.cause.model_dump(mode="json", by_alias=True, exclude_none=True) if self.cause else None
        return json.dumps({**said, "cause": cause}).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Word":
        """Raises ValueError if the line is no word."""
        try:
            said = json.loads(line)
            cause = said["cause"]
            message = None if cause is None else TerminationMessage.model_validate(cause, extra="ignore")
            return cls(int(said["node"]), Kind(said["kind"]), message, str(said["why"]), str(said["name"]))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{error!r}") from error


def node_named(node: int, nodes: int, name: str) -> str:
    """Returns a node as the begin of a sentence. `node`: its number, from 0. `name`: its name, if it is known."""
    return f"Node {name} (number {node} from 0)" if name else f"Node {node} of {nodes} (counted from 0)"


def _why(error: OSError) -> str:
    return CLOSED if isinstance(error, ConnectionError) else str(error.strerror or error)


class Link:
    """A connection to the launcher of one node."""

    def __init__(self, node: int, connection: socket.socket, rest: bytes = b"", name: str = "") -> None:
        """`node`, `name`: number and name of the node at the other end. `rest`: bytes that were read already."""
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.node, self.name, self._connection, self._rest = node, name, connection, rest
        self._clock = RunningTime(MOST_BETWEEN_LOOKS)
        self._heard, self.broken, self.is_over, self._refused = 0.0, "", False, ""
        """`broken`: why nothing can be sent or read any more. `is_over`: whether the node has said farewell."""

    @property
    def address(self) -> str:
        """The address of this end."""
        return str(self._connection.getsockname()[0]).removeprefix("::ffff:")

    def send(self, word: Word) -> None:
        """Sends a word. An error is found by `words`."""
        if self.broken or self._refused:
            return
        try:
            self._connection.sendall(word.line())
        except OSError as error:
            self._refused = _why(error)

    def words(self, until: Kind | None = None) -> list[Word]:
        """Returns the words that have come since the last call. `until`: words after one of this kind stay for the next
        call."""
        self._read()
        found: list[Word] = []
        while b"\n" in self._rest and not (found and found[-1].kind is until):
            line, _, self._rest = self._rest.partition(b"\n")
            try:
                found.append(Word.parse(line))
            except ValueError:
                self.broken = self.broken or "what came is no word of a launcher"
        self.name = next((word.name for word in found if word.name and word.node == self.node), self.name)
        self.is_over = self.is_over or any(word.kind is Kind.ENDED and word.node == self.node for word in found)
        return found

    def _read(self) -> None:
        while not self.broken and len(self._rest) <= MOST_BYTES and select([self._connection], [], [], 0)[0]:
            try:
                content = self._connection.recv(MOST_BYTES)
            except OSError as error:
                self.broken = _why(error)
                return
            if not content:
                self.broken = CLOSED
                return
            self._heard, self._rest = self._clock(), self._rest + content
        # Only now: what the node said before it ended may be the cause, and is read although nothing can be sent to it.
        self.broken = self.broken or self._refused
        if not self.broken and self._clock() - self._heard > SILENCE_SECONDS:
            self.broken = f"nothing was heard of it for {SILENCE_SECONDS:.0f} s"

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


class Links:
    """The connections of one launcher. With one node there are none."""

    def __init__(self, node: int = 0, links: Sequence[Link] = ()) -> None:
        """`node`: number of the own node."""
        self._node, self._links, self._told = node, list(links), monotonic()

    @property
    def address(self) -> str:
        """The own address in the network of the pods; "" without connections."""
        return self._links[0].address if self._links else ""

    def tell(self, kind: Kind, cause: TerminationMessage | None = None) -> None:
        """Tells all other nodes."""
        self._send(Word(self._node, kind, cause))

    def heard(self) -> list[Word]:
        """Returns what other nodes have told since the last call. A node that is lost is told once, as LOST. Tells the
        others that this one is alive, if it is time."""
        if monotonic() - self._told > ALIVE_SECONDS:
            self.tell(Kind.ALIVE)
        found: list[Word] = []
        for link in self._links:
            words = [word for word in link.words() if word.kind is not Kind.ALIVE]
            for word in words:
                self._send(word, but=link)
            found += words
            if link.broken and not link.is_over:
                found.append(Word(link.node, Kind.LOST, why=link.broken, name=link.name))
        for link in [link for link in self._links if link.broken]:
            link.close()
            self._links.remove(link)
        return found

    def _send(self, word: Word, but: Link | None = None) -> None:
        self._told = monotonic()
        for link in self._links:
            if link is not but:
                link.send(word)

    def close(self) -> None:
        """Says farewell and closes all connections."""
        self.tell(Kind.ENDED)
        for link in self._links:
            link.close()
