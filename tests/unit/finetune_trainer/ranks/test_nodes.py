"""The launchers of two pods start, look after and end the ranks of one training. They run on this machine here, and
their ranks are small programs."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_operator.decisions.attempts import gathering
from finetune_operator.observed.causes import starting
from finetune_trainer.pod.failure import StopRequested, TrainerFailure
from finetune_trainer.pod.running_time import RunningTime
from finetune_trainer.ranks import links as links_module
from finetune_trainer.ranks import nodes as nodes_module
from finetune_trainer.ranks.links import Kind, Link, Links, Word
from finetune_trainer.ranks.nodes import Node, interface_of, links_of
from tests.integration.waiting import wait_for

LAUNCH = """
import os, sys
from finetune_trainer.pod.running_time import RunningTime
from finetune_trainer.ranks import launcher, links
launcher.LAST_SECONDS = launcher.FINDING_SECONDS = 2.0
links.SILENCE_SECONDS, links.ALIVE_SECONDS = 4.0, 0.5
number, port, ranks, program = sys.argv[1:]
here = launcher.Node(int(number), 2, "127.0.0.1", int(port), f"machine-{number}")
sys.exit(launcher.launch(int(ranks), [sys.executable, "-c", program], here))
"""
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from finetune_api.bundle import TerminationMessage
from finetune_trainer.pod.rank import by_rank, place
from finetune_trainer.pod.termination import write_termination_message
from finetune_trainer.ranks.arrivals import arrival, awaited_arrivals
from finetune_trainer.ranks.peers import handle_failed_peer

def end(reason, code, message=""):
    write_termination_message(TerminationMessage(reason=reason, message=message or by_rank("Ended.")))
    os._exit(code)

here = place()
signal.signal(signal.SIGTERM, lambda *_: end("Preempted", 33))
handle_failed_peer()
(here.meeting / arrival(here.rank)).touch()
while not all((here.meeting / name).exists() for name in awaited_arrivals(here)):
    time.sleep(0.01)
print(f"{here} has met the others", flush=True)

waits = Path(os.environ["SHARED"]) / "waits"

def wait():
    try:
        waits.touch()
        waits.with_name(f"waits-{here.rank}").touch()
        time.sleep(1000)
    except BaseException as error:
        end(error.cause.reason, 1, error.cause.message)

def when_the_other_waits():
    while not waits.exists():
        time.sleep(0.01)
"""


def free_port() -> int:
    """A port that nobody uses, like the next one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Pods:
    """Two pods whose launchers meet."""

    def __init__(self, folder: Path, lines: str, ranks: int = 1, numbers: tuple[int, ...] = (0, 1)) -> None:
        self.folder, self.lines, self.ranks, self.port = folder, lines, ranks, free_port()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        for number in numbers:
            self.start(number)

    def start(self, number: int) -> None:
        """Starts the launcher of a node."""
        arguments = [str(number), str(self.port), str(self.ranks), PROGRAM + self.lines]
        self.processes[number] = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *arguments],
            env=os.environ
            | {"TERMINATION_LOG": str(self.folder / f"log-{number}"), "GRACE_SECONDS": "8", "SHARED": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_said(self, number: int, text: str) -> None:
        """Waits until the pod of a node prints a line with this text."""
        stdout = self.processes[number].stdout
        assert stdout
        while text not in (line := stdout.readline()):
            assert line, "the pod has ended"

    def wait(self) -> None:
        """Returns when the ranks of all pods wait."""
        names = [f"waits-{number}" for number in self.processes]
        wait_for("the ranks to wait", lambda: all((self.folder / name).exists() for name in names))

    def ends(self) -> list[tuple[int, str, str]]:
        """The exit code, the reason and the message of each pod that was started."""
        found = []
        for number, process in sorted(self.processes.items()):
            _, errors = process.communicate(timeout=60)
            log = self.folder / f"log-{number}"
            assert log.exists(), errors
            message = TerminationMessage.model_validate_json(log.read_bytes())
            found.append((process.returncode, str(message.reason), message.message))
        return found


def test_the_ranks_of_all_nodes_meet_and_rank_0_alone_prints(tmp_path: Path) -> None:
    lines = """
expected = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1)}[here.rank]
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
good = (here.node, here.rank_of_node, here.ranks, gpu) == (*expected, 4, str(here.rank_of_node))
end("Succeeded", 0) if good else end("TrainerCrashed", 34)
"""
    pods = Pods(tmp_path, lines, ranks=2)
    pods.has_said(0, "rank 0 of 4 on node machine-0 has met the others")
    pods.has_said(1, f"This is node 1 of 2. It meets the others at 127.0.0.1:{pods.port}.")
    assert pods.ends() == [(0, "Succeeded", "Rank 0 of 4 on node machine-0: Ended."), (0, "Succeeded", "")]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_those_of_the_other_node_with_its_cause(failing: int, tmp_path: Path) -> None:
    began = time.monotonic()
    lines = f"if here.rank != {failing}: wait()\nwhen_the_other_waits(); end('GPUFault', 31)"
    pods = Pods(tmp_path, lines)
    said = f"Rank {failing} of 2 on node machine-{failing}: Ended."
    assert pods.ends() == [(31, FailureReason.GPU_FAULT, said)] * 2
    assert time.monotonic() - began < 30


def test_a_rank_that_does_not_hear_the_cause_is_killed_and_its_pod_reports_the_cause(tmp_path: Path) -> None:
    deaf = "if here.rank == 0: signal.signal(signal.SIGUSR1, signal.SIG_IGN); wait()"
    pods = Pods(tmp_path, f"{deaf}\nwhen_the_other_waits(); end('GPUFault', 31)")
    assert pods.ends() == [(31, FailureReason.GPU_FAULT, "Rank 1 of 2 on node machine-1: Ended.")] * 2


def test_a_lost_connection_alone_is_told_by_both_pods(tmp_path: Path) -> None:
    pods = Pods(tmp_path, "if here.rank == 1: end('PeerLost', 38)\ntime.sleep(1000)")
    assert [end[:2] for end in pods.ends()] == [(38, FailureReason.PEER_LOST)] * 2


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_of_one_pod_stops_the_ranks_of_both(asked: int, tmp_path: Path) -> None:
    pods = Pods(tmp_path, "wait()")
    pods.has_said(0, "has met the others")
    pods.processes[asked].send_signal(signal.SIGTERM)
    assert [end[:2] for end in pods.ends()] == [(33, FailureReason.PREEMPTED)] * 2


@pytest.mark.parametrize(("harmed", "left"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_pod_that_is_killed_or_not_heard_any_more_ends_the_other_one(
    harm: signal.Signals, harmed: int, left: int, tmp_path: Path
) -> None:
    pods = Pods(tmp_path, "wait()")
    pods.wait()
    began = time.monotonic()
    pods.processes[harmed].send_signal(harm)
    gone = pods.processes.pop(harmed)
    (code, reason, message), *_ = pods.ends()
    assert (code, reason) == (38, FailureReason.PEER_LOST)
    assert message.startswith(f"Node machine-{harmed} (number {harmed} from 0) was lost: ")
    assert time.monotonic() - began < 20
    gone.kill()
    gone.wait()


def test_results_that_are_published_count_also_if_a_rank_of_another_node_does_not_end(tmp_path: Path) -> None:
    pods = Pods(tmp_path, "end('Succeeded', 0) if here.rank == 0 else time.sleep(1000)")
    assert [end[:2] for end in pods.ends()] == [(0, "Succeeded")] * 2


def test_a_pod_that_is_stopped_while_it_waits_for_the_other_one_does_not_start(tmp_path: Path) -> None:
    node = Node(0, 2, "127.0.0.1", free_port())
    with pytest.raises(StopRequested), links_of(node, lambda: True):
        pass


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, r"^Node 1 of 2 \(counted from 0\) has not connected to node 0 for 0 minutes\.$"),
        (1, r"^Node 1 of 2 \(counted from 0\) could not connect to node 0 at 127\.0\.0\.1:\d+ \(Connection refused\)"),
    ],
)
def test_a_node_that_does_not_come_is_waited_for_up_to_a_limit(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "MEETING_SECONDS", 0.2)
    with pytest.raises(TrainerFailure, match=said) as caught, links_of(Node(number, 2, "127.0.0.1", free_port()), no):
        pass
    assert caught.value.reason is FailureReason.PEER_LOST


def test_the_launchers_wait_as_long_as_the_operator_lets_a_pod_start() -> None:
    assert timedelta(seconds=nodes_module.MEETING_SECONDS) >= gathering.LIMIT + max(
        starting.START_LIMIT, starting.SLOW_LIMIT, starting.FETCH_LIMIT
    )


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (TimeoutError("timed out"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
    ],
    ids=["starting", "no name yet", "no DNS", "dropped", "unreachable"],
)
def test_only_a_node_0_that_does_not_answer_is_given_up_early(
    error: OSError, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def connect(*_: object) -> socket.socket:
        tried.append(1)
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(nodes_module, "REACHING_SECONDS", 0.001)
    monkeypatch.setattr(nodes_module, "LOOK_SECONDS", 0.005)
    node, stopped = Node(1, 2, "127.0.0.1", 1), lambda: len(tried) > 20
    with pytest.raises(TrainerFailure if ends else StopRequested), links_of(node, stopped):
        pass


def test_a_launcher_says_every_minute_for_which_nodes_it_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes_module, "TOLD_SECONDS", 0.1)
    monkeypatch.setattr(nodes_module, "MEETING_SECONDS", 0.3)
    with pytest.raises(TrainerFailure), links_of(Node(0, 3, "127.0.0.1", free_port()), no):
        pass
    assert "Waiting for node 1, 2 of 3 (counted from 0) for 0 min.\n" in capsys.readouterr().out


def no() -> bool:
    """Nobody has asked the pod to stop."""
    return False


@contextmanager
def pair() -> Iterator[tuple[Link, socket.socket]]:
    """A connection to a launcher, and the other end."""
    one, other = socket.socketpair()
    with one, other:
        link = Link.__new__(Link)
        link.node, link.name, link._connection, link._rest = 1, "gpu-7", one, b""
        link._clock, link._heard, link.broken, link.is_over = RunningTime(10.0), 0.0, "", False
        link._refused = ""
        yield link, other


CAUSE = TerminationMessage(reason=FailureReason.GPU_FAULT, message="Rank 1 of 2: The GPU\nbroke.", step=3)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_words_that_come_in_pieces_are_read_whole(cut: int) -> None:
    words = [Word(1, Kind.CAUSE, CAUSE), Word(1, Kind.STOP), Word(1, Kind.LOSS)]
    content = b"".join(word.line() for word in words)
    with pair() as (link, other):
        found: list[Word] = []
        for start in range(0, len(content), cut):
            other.sendall(content[start : start + cut])
            found += link.words()
        assert found == words
        assert not link.broken


def test_words_after_the_awaited_one_stay_for_later() -> None:
    with pair() as (link, other):
        other.sendall(Word(1, Kind.ALIVE).line() + Word(1, Kind.BEGIN).line() + Word(1, Kind.STOP).line())
        assert [word.kind for word in link.words(until=Kind.BEGIN)] == [Kind.ALIVE, Kind.BEGIN]
        assert [word.kind for word in link.words()] == [Kind.STOP]


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n",
        b"[]\n",
        b'{"node": "x"}\n',
        b'{"node": 1, "kind": "Other", "cause": null, "why": "", "name": ""}\n',
        json.dumps({"node": 1, "kind": "Cause", "cause": {"reason": 1}, "why": "", "name": ""}).encode() + b"\n",
    ],
)
def test_a_connection_with_other_words_is_lost(content: bytes) -> None:
    with pair() as (link, other):
        other.sendall(content)
        links = Links(0, [link])
        assert links.heard() == [Word(1, Kind.LOST, why="what came is no word of a launcher", name="gpu-7")]
        assert links.heard() == [], "it is told once"


def test_a_node_that_says_farewell_is_not_lost() -> None:
    with pair() as (link, other):
        other.sendall(Word(1, Kind.ENDED).line())
        other.close()
        assert [word.kind for word in Links(0, [link]).heard()] == [Kind.ENDED]


@pytest.mark.parametrize("last", [[], [Word(1, Kind.CAUSE, CAUSE)]], ids=["nothing", "the cause"])
@pytest.mark.parametrize("unread", [0, 1], ids=["closed", "reset"])
@pytest.mark.parametrize("sent", [0, 1, 3])
def test_however_a_connection_ends_the_last_words_are_read_and_one_sentence_tells_it(
    sent: int, unread: int, last: list[Word]
) -> None:
    with connected() as (link, other):
        links = Links(0, [link])
        for _ in range(unread):
            links.tell(Kind.ALIVE)
        for word in last:
            other.sendall(word.line())
        other.close()
        for _ in range(sent):
            links.tell(Kind.ALIVE)
        assert links.heard() == [*last, Word(1, Kind.LOST, why="the connection was closed", name="gpu-7")]


@contextmanager
def connected() -> Iterator[tuple[Link, socket.socket]]:
    """A connection through TCP to a launcher, and the other end. Unlike a pair, it can be reset."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            yield Link(1, one, name="gpu-7"), other


def test_a_node_is_not_lost_if_the_launcher_itself_was_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "SILENCE_SECONDS", 0.5)
    with pair() as (link, _):
        link._clock = RunningTime(0.3)
        time.sleep(0.8)  # it does not look
        links = Links(0, [link])
        assert links.heard() == []
        deadline = time.monotonic() + 30
        while not (lost := links.heard()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert lost[0].kind is Kind.LOST


def test_a_silent_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "SILENCE_SECONDS", 0.0)
    with pair() as (link, _):
        assert [word.why for word in Links(0, [link]).heard()] == ["nothing was heard of it for 0 s"]


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\n\r\n", Word(7, Kind.HELLO).line(), b"x" * 100_000])
def test_strangers_at_the_port_of_node_0_are_ignored(says: bytes) -> None:
    host, port = "127.0.0.1", free_port()
    listener = nodes_module._listening(port)
    with listener, socket.create_connection((host, port)) as stranger:
        stranger.sendall(says)
        stranger.shutdown(socket.SHUT_WR)
        assert nodes_module._accepted(listener, {1}) is None
    with nodes_module._listening(port) as again, socket.create_connection((host, port)) as other:
        other.sendall(Word(1, Kind.HELLO).line() + Word(1, Kind.STOP).line())
        link = nodes_module._accepted(again, {1})
        assert link
        assert [word.kind for word in link.words()] == [Kind.STOP], "nothing is lost that came with the greeting"


@pytest.mark.parametrize(("address", "name"), [("127.0.0.1", "lo"), ("::1", "lo"), ("203.0.113.7", None)])
def test_the_network_interface_is_found_by_its_address(address: str, name: str | None) -> None:
    if address == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    assert interface_of(address) == name


@pytest.mark.parametrize(
    ("host", "store"), [("job-0.nodes.ns.svc", "job-0.nodes.ns.svc:29401"), ("fd00::1", "[fd00::1]:29401")]
)
def test_rank_0_is_found_at_the_port_after_that_of_the_launcher(host: str, store: str) -> None:
    assert Node(1, 2, host, 29400).store == store
    assert Node().store == ""
