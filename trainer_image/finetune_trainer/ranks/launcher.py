"""Starts the ranks of a training, one process for each GPU, and looks after them until the last one has ended.

It passes SIGTERM on to all ranks. When one of them fails, it tells the others the cause, and ends those that do not end
by themselves. A rank that gives no sign of life has failed too. It does what torchrun does for one node, and three
things more: it names the rank that the others wait for, the exit code and the termination message of the pod are those
of the rank that failed first, and a rank may take the whole grace period to store a checkpoint. It does not import
torch, which would take 600 MB."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.rank import Place
from finetune_trainer.pod.scratch import scratch_folder
from finetune_trainer.pod.termination import LOG_VARIABLE, working_seconds, write_termination_message
from finetune_trainer.ranks.outcome import Ended, ended, exit_code, is_alarm, is_loss, killed, outcome, silent
from finetune_trainer.ranks.peers import CAUSE
from finetune_trainer.ranks.vigil import Vigil, why_silent

LAST_SECONDS = 15.0
"""How long the other ranks may still take after the end of the training is decided. Rank 0 waits ten seconds for the
upload of a checkpoint that is under way."""
FINDING_SECONDS = 30.0
"""How long the other ranks may take if they have to find out themselves that the training is over: ten seconds in which
they wait for the word of the launcher, and LAST_SECONDS. NCCL does not notice that a process is gone."""
LOOK_SECONDS = 1.0
MOST_BETWEEN_LOOKS = 2.0
"""A longer time between two looks was one in which the launcher did not run."""
WAITED = {signal.SIGTERM, signal.SIGCHLD}
PR_SET_PDEATHSIG = 1
RESERVED = 1 / 3
"""Share of the reserved part of the grace period that the launcher leaves for itself."""


def launch(ranks: int, command: Sequence[str]) -> int:
    """Runs `command` as each of the ranks. Writes the termination message of the pod. Returns its exit code."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    with scratch_folder("ranks-") as meeting:
        places = [Place(rank, ranks, meeting, os.getpid()) for rank in range(ranks)]
        end = outcome(Supervision({place: _start(place, command, before) for place in places}).run())
    write_termination_message(end.message)
    return exit_code(end)


class Supervision:
    """The processes of the ranks, until all have ended."""

    def __init__(self, processes: dict[Place, "subprocess.Popen[bytes]"]) -> None:
        self._processes = processes
        self._ends: list[Ended] = []
        self._vigil, self._looked = Vigil(processes), monotonic()
        self._stopping = self._killing = False
        self._deadline: float | None = None
        """When the ranks that are left are killed."""

    def run(self) -> list[Ended]:
        """Waits for the end of all ranks. Returns their ends in the order in which they ended."""
        while self._processes:
            told = signal.sigtimedwait(WAITED, LOOK_SECONDS)
            if told and told.si_signo == signal.SIGTERM:
                self._stop(told.si_pid)
            for end in self._ended():
                if end.reason == FailureReason.TRAINING_STALLED:
                    self._end_silent(suspected=True)  # before it in the order of the ends, as the cause
                self._ends.append(end)
                self._follow(end)
            self._look()
            if self._deadline is not None and monotonic() > self._deadline:
                self._killing = True
                self._signal(signal.SIGKILL)
        return self._ends

    def _look(self) -> None:
        """Ends ranks that give no sign of life. A launcher that was frozen with its pod does not count that time."""
        now = monotonic()
        self._vigil.look(min(now - self._looked, MOST_BETWEEN_LOOKS))
        self._looked = now
        if self._deadline is None:
            self._end_silent()

    def _end_silent(self, suspected: bool = False) -> None:
        """Kills the ranks that give no sign of life, and does not wait for their ends: a driver may hold them."""
        for place, process in list(self._processes.items()):
            if (seconds := self._vigil.silence(place, suspected)) is not None:
                end = silent(place, seconds, why_silent(process.pid))
                print(f"{end.reason}: {end.message.message}", file=sys.stderr, flush=True)
                self._processes.pop(place).kill()
                self._ends.append(end)
                self._follow(end)

    def _stop(self, sender: int) -> None:
        """Passes SIGTERM on, once: a rank that receives it twice would stop reporting its end. `sender`: the process
        that sent it, which may be a rank."""
        if not self._stopping:
            self._stopping = True
            self._end_within(working_seconds(RESERVED))
            self._signal(signal.SIGTERM, but=sender)

    def _ended(self) -> list[Ended]:
        """Returns the ends of the ranks that have ended since the last call."""
        over = [place for place, process in self._processes.items() if process.poll() is not None]
        return [self._end_of(place, self._processes.pop(place).returncode) for place in over]

    def _end_of(self, place: Place, returncode: int) -> Ended:
        if self._killing and returncode == -signal.SIGKILL:
            return killed(place, self._stopping)
        reported = _reported(place)
        end = ended(place, returncode, reported)
        if end.code and not reported:
            print(f"{end.reason}: {end.message.message}", file=sys.stderr, flush=True)
        return end

    def _follow(self, end: Ended) -> None:
        """Ends the other ranks if this end decides that of the training."""
        if is_alarm(end, self._stopping):
            self._tell(end.message)
        if end.rank == 0 or is_alarm(end, self._stopping):
            self._end_within(LAST_SECONDS)
        elif is_loss(end, self._stopping):
            self._end_within(FINDING_SECONDS)

    def _tell(self, cause: TerminationMessage) -> None:
        """Tells the other ranks why the training ends. The first cause is the one that counts."""
        for place in self._processes:
            file = place.meeting / CAUSE
            if not file.exists():
                partial = file.with_suffix(".partial")
                partial.write_text(cause.model_dump_json(by_alias=True))
                partial.replace(file)
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals, but: int = 0) -> None:
        for process in self._processes.values():
            if process.pid != but:
                process.send_signal(number)

    def _end_within(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)


def _start(place: Place, command: Sequence[str], mask: set[int | signal.Signals]) -> "subprocess.Popen[bytes]":
    """Starts a rank with the signals of `mask` blocked. Rank 0 alone prints to the pod's log; all may write errors."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives the launcher

    return subprocess.Popen(
        command,
        env={**os.environ, **environment(place, os.environ, len(os.sched_getaffinity(0)))},
        stdout=None if place.rank == 0 else subprocess.DEVNULL,
        preexec_fn=prepare,
    )


def environment(place: Place, given: "os._Environ[str] | dict[str, str]", cpus: int) -> dict[str, str]:
    """Returns the environment variables of a rank in addition to those of the pod, which are `given`. `cpus`: number of
    processors of the node.

    Each rank sees only its own GPU. All connections stay inside the pod. The ranks share the processors: with one
    thread for each processor in each rank, they would wait for each other."""
    gpus = given["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in given else None
    own = str(place.rank) if gpus is None else "".join(gpus[place.rank : place.rank + 1])
    return {
        **place.environment,
        LOG_VARIABLE: str(_log(place)),
        "CUDA_VISIBLE_DEVICES": own,
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS") or str(max(1, cpus // place.ranks)),
    }


def _log(place: Place) -> Path:
    """Returns the file for the termination message of a rank."""
    return place.meeting / f"rank-{place.rank}.json"


def _reported(place: Place) -> str:
    return _log(place).read_text() if _log(place).exists() else ""


def command_of(arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs the trainer with these arguments."""
    return [sys.executable, "-m", "finetune_trainer", *arguments]
