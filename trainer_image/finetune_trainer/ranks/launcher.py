"""Starts the ranks of a pod, one process for each GPU, and looks after them until the last one has ended.

It passes SIGTERM on to all ranks. When one of them fails, it tells the others the cause, and ends those that do not end
by themselves. A rank that gives no sign of life has failed too. With several nodes each pod has a launcher, and they do
so for the ranks of all pods. It does what torchrun does, and three things more: it names the rank that the others wait
for, the exit code and the termination message of the pod are those of the rank that failed first, and a rank may take
the whole grace period to store a checkpoint. It does not import torch, which would take 600 MB."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.rank import Place
from finetune_trainer.pod.running_time import RunningTime
from finetune_trainer.pod.scratch import scratch_folder
from finetune_trainer.pod.termination import working_seconds, write_termination_message
from finetune_trainer.ranks.arrivals import ALL_ARRIVED, arrivals_of_node
from finetune_trainer.ranks.environment import environment, log_of
from finetune_trainer.ranks.links import MOST_BETWEEN_LOOKS, Kind, Links, Word
from finetune_trainer.ranks.nodes import Node, interface_of, links_of
from finetune_trainer.ranks.outcome import (
    Ended,
    ended,
    exit_code,
    is_alarm,
    is_loss,
    killed,
    lost_node,
    outcome,
    silent,
)
from finetune_trainer.ranks.peers import CAUSE
from finetune_trainer.ranks.vigil import Vigil, why_silent

LAST_SECONDS = 25.0
"""How long the other ranks may still take after the end of the training is decided. Rank 0 waits ten seconds for the
upload of a checkpoint that is under way, and ten more for other results that are not stored yet."""
FINDING_SECONDS = 40.0
"""How long the other ranks may take if they have to find out themselves that the training is over: ten seconds in which
they wait for the word of the launcher, and LAST_SECONDS. NCCL does not notice that a process is gone."""
LOOK_SECONDS = 1.0
ONE_NODE = Node()
WAITED = {signal.SIGTERM, signal.SIGCHLD}
PR_SET_PDEATHSIG = 1
RESERVED = 1 / 3
"""Share of the reserved part of the grace period that the launcher leaves for itself."""


def launch(ranks: int, command: Sequence[str], here: Node = ONE_NODE) -> int:
    """Runs `command` as each of the `ranks` ranks of this pod. Writes the termination message of the pod. Returns its
    exit code. `here`: the node of the pod among those of the training.

    Raises StopRequested and TrainerFailure as `links_of` does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    with scratch_folder("ranks-") as meeting, links_of(here, _is_stopped) as links:
        interface = interface_of(links.address) if here.nodes > 1 else "lo"
        processes = {place: _start(place, command, before, interface) for place in places_of(here, ranks, meeting)}
        end = Supervision(processes, links).run()
    write_termination_message(end.message)
    return exit_code(end)


def places_of(here: Node, ranks: int, meeting: Path) -> list[Place]:
    """Returns the places of the `ranks` ranks of this pod."""
    first, every = here.number * ranks, here.nodes * ranks
    return [
        Place(rank, every, meeting, os.getpid(), here.number, here.nodes, here.store, here.name)
        for rank in range(first, first + ranks)
    ]


def _is_stopped() -> bool:
    """Returns whether the pod has received SIGTERM, which is blocked. Asks once."""
    return signal.sigtimedwait({signal.SIGTERM}, 0) is not None


class Supervision:
    """The processes of the ranks of this pod, until all have ended."""

    def __init__(self, processes: dict[Place, "subprocess.Popen[bytes]"], links: Links) -> None:
        """`links`: the connections to the launchers of the other nodes."""
        self._processes, self._links = processes, links
        self._here = next(iter(processes))
        """The place of the first rank of this pod."""
        self._ends: list[Ended] = []
        self._vigil, self._looked = Vigil(processes), 0.0
        self._clock = RunningTime(MOST_BETWEEN_LOOKS)
        """Time in which the launcher was frozen with its pod does not count."""
        self._stopping = self._killing = self._published = False
        self._cause: TerminationMessage | None = None
        """Why the training ends, as another node has told it first."""
        self._arrived: set[int] = set()
        """Nodes whose ranks are ready to meet."""
        self._deadline: float | None = None
        """When the ranks that are left are killed, by the clock."""

    def run(self) -> Ended:
        """Waits for the end of all ranks. Returns the end of the pod."""
        while self._processes:
            told = signal.sigtimedwait(WAITED, LOOK_SECONDS)
            if told and told.si_signo == signal.SIGTERM:
                self._stop(told.si_pid)
            for word in self._links.heard():
                self._hear(word)
            self._look_for_arrivals()
            for end in self._ended():
                if end.reason == FailureReason.TRAINING_STALLED:
                    self._end_silent(suspected=True)  # before it in the order of the ends, as the cause
                self._ends.append(end)
                self._follow(end)
            self._look()
            if self._deadline is not None and self._clock() > self._deadline:
                self._killing = True
                self._signal(signal.SIGKILL)
        return outcome(self._ends, self._published, self._cause)

    def _look(self) -> None:
        """Ends ranks that give no sign of life."""
        now = self._clock()
        self._vigil.look(now - self._looked)
        self._looked = now
        if self._deadline is None:
            self._end_silent()

    def _end_silent(self, suspected: bool = False) -> None:
        """Kills the ranks that give no sign of life, and does not wait for their ends: a driver may hold them."""
        for place, process in list(self._processes.items()):
            if (seconds := self._vigil.silence(place, suspected)) is not None:
                end = self._told(place) or silent(place, seconds, why_silent(process.pid))
                print(f"{end.reason}: {end.message.message}", file=sys.stderr, flush=True)
                self._processes.pop(place).kill()
                self._ends.append(end)
                self._follow(end)

    def _stop(self, sender: int) -> None:
        """Passes SIGTERM on, once: a rank that receives it twice would stop reporting its end. `sender`: the process
        that sent it, which may be a rank; 0 if another node has told it."""
        if not self._stopping:
            self._stopping = True
            self._links.tell(Kind.STOP)
            self._end_within(working_seconds(RESERVED))
            self._signal(signal.SIGTERM, but=sender)

    def _ended(self) -> list[Ended]:
        """Returns the ends of the ranks that have ended since the last call."""
        over = [place for place, process in self._processes.items() if process.poll() is not None]
        return [self._end_of(place, self._processes.pop(place).returncode) for place in over]

    def _end_of(self, place: Place, returncode: int) -> Ended:
        if self._killing and returncode == -signal.SIGKILL:
            return self._told(place) or killed(place, self._stopping)
        reported = _reported(place)
        end = ended(place, returncode, reported)
        if end.code and not reported:
            print(f"{end.reason}: {end.message.message}", file=sys.stderr, flush=True)
        return end

    def _told(self, place: Place) -> Ended | None:
        """Returns the end of a rank that has reported its failure, but is killed because it does not end: a broken GPU
        may hold its process. None if it has reported no failure."""
        reported = _reported(place)
        end = ended(place, -signal.SIGKILL, reported) if reported else None
        return end if end and isinstance(end.message.reason, FailureReason) else None

    def _look_for_arrivals(self) -> None:
        """Tells the other nodes when the ranks of this pod are ready to meet theirs."""
        ready = all((self._here.meeting / name).exists() for name in arrivals_of_node(self._here))
        if ready and self._here.node not in self._arrived:
            self._links.tell(Kind.ARRIVED)
            self._arrive(self._here.node)

    def _arrive(self, node: int) -> None:
        """Lets the ranks of this pod go on when those of all nodes are ready."""
        self._arrived.add(node)
        if len(self._arrived) == self._here.nodes:
            (self._here.meeting / ALL_ARRIVED).touch()

    def _hear(self, word: Word) -> None:
        """Follows what the launcher of another node has told."""
        if word.kind is Kind.ARRIVED:
            self._arrive(word.node)
        elif word.kind is Kind.STOP:
            self._stop(0)
        elif word.kind is Kind.PUBLISHED:
            self._published = True
            self._end_within(LAST_SECONDS)
        elif word.kind is Kind.LOSS:
            self._end_within(FINDING_SECONDS)
        elif word.kind is Kind.CAUSE and word.cause:
            self._fail(word.cause)
        elif word.kind is Kind.LOST and not self._published:
            self._lose(word)

    def _lose(self, word: Word) -> None:
        """Ends the training if another node is lost. After SIGTERM the ranks have been told to end already."""
        if not self._stopping:
            cause = lost_node(word, self._here.nodes)
            self._links.tell(Kind.CAUSE, cause)
            self._fail(cause)

    def _fail(self, cause: TerminationMessage) -> None:
        """Ends the ranks of this pod because of what happened on another node."""
        self._cause = self._cause or cause
        self._tell(cause)
        self._end_within(LAST_SECONDS)

    def _follow(self, end: Ended) -> None:
        """Ends the other ranks, of this pod and of the others, if this end decides that of the training."""
        if is_alarm(end, self._stopping):
            self._tell(end.message)
            self._links.tell(Kind.CAUSE, end.message)
        if end.rank == 0 or is_alarm(end, self._stopping):
            self._end_within(LAST_SECONDS)
            if end.code == 0:
                self._links.tell(Kind.PUBLISHED)
        elif is_loss(end, self._stopping):
            self._links.tell(Kind.LOSS)
            self._end_within(FINDING_SECONDS)

    def _tell(self, cause: TerminationMessage) -> None:
        """Tells the other ranks why the training ends. The first cause is the one that counts."""
        file = self._here.meeting / CAUSE
        if not file.exists():
            partial = file.with_suffix(".partial")
            try:
                partial.write_text(cause.model_dump_json(by_alias=True))
            except OSError as error:  # the disk is full: the others are ended without this word
                print(f"The cause could not be written to {partial}: {error.strerror}.", file=sys.stderr, flush=True)
                return
            partial.replace(file)
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals, but: int = 0) -> None:
        for process in self._processes.values():
            if process.pid != but:
                process.send_signal(number)

    def _end_within(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)


def _start(
    place: Place, command: Sequence[str], mask: set[int | signal.Signals], interface: str | None
) -> "subprocess.Popen[bytes]":
    """Starts a rank with the signals of `mask` blocked. Rank 0 alone prints to the pod's log; all may write errors."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives the launcher

    return subprocess.Popen(
        command,
        env={**os.environ, **environment(place, os.environ, len(os.sched_getaffinity(0)), interface)},
        stdout=None if place.rank == 0 else subprocess.DEVNULL,
        preexec_fn=prepare,
    )


def _reported(place: Place) -> str:
    return log_of(place).read_text() if log_of(place).exists() else ""


def command_of(arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs the trainer with these arguments."""
    return [sys.executable, "-m", "finetune_trainer", *arguments]
