"""Pods whose processes are forked from one that has the trainer's libraries, so that no test imports them again.

An import takes seven seconds of a processor, and a test of several ranks has up to eight processes. Everything else is
as in a pod: a launcher, and the ranks as its children."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from finetune_trainer import __main__, train
from finetune_trainer.pod.rank import Place, place
from finetune_trainer.ranks import launcher, vigil
from finetune_trainer.ranks.environment import environment
from finetune_trainer.ranks.nodes import Node
from finetune_trainer.train import recipe  # noqa: F401  which imports everything that a training needs
from finetune_trainer.training import loop
from tests.integration.finetune_trainer.ranks.processes import CONTEXT


class Launcher:
    """The launcher of a pod. It has those methods of a `subprocess.Popen` that the tests use."""

    def __init__(self, folder: Path, node: Node, ranks: int, arguments: Sequence[str], patch: str) -> None:
        """Starts it. `arguments`: of the command. `patch`: lines of Python that every rank runs first."""
        environment = os.environ | {"TERMINATION_LOG": str(folder / "termination"), "OMP_NUM_THREADS": "1"}
        self._process = CONTEXT.Process(
            target=_launch, args=(folder, dict(environment), node, ranks, arguments, patch), daemon=True
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the launcher", seconds)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


class _Rank:
    """A forked rank, with those methods of a `subprocess.Popen` that the launcher uses."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _launch(
    folder: Path, environment: dict[str, str], node: Node, ranks: int, arguments: Sequence[str], patch: str
) -> NoReturn:
    """Is the launcher, or the only rank."""
    os.environ.clear()
    os.environ.update(environment)
    for name, number in (("log", 1), ("errors", 2)):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), number)
    if ranks * node.nodes == 1:
        _be_rank(arguments, patch)
    launcher._start = _fork
    vigil.MARGIN_SECONDS = 1.0
    code = launcher.launch(ranks, [*arguments, patch], node)
    _exit(code)


def _fork(place: Place, command: Sequence[str], mask: Any, interface: str | None) -> Any:
    """Does what the launcher's `_start` does, except that it forks. The last part of `command` is the patch."""
    pid = os.fork()
    if pid:
        return _Rank(pid)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    ctypes.CDLL(None).prctl(launcher.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environment(place, os.environ, len(os.sched_getaffinity(0)), interface))
    if place.rank > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    *arguments, patch = command
    return _be_rank(arguments, patch)


def _be_rank(arguments: Sequence[str], patch: str) -> NoReturn:
    torch.set_num_threads(1)
    code = 1
    try:
        names = {"os": os, "sys": sys, "time": time, "__main__": __main__, "train": train, "loop": loop}
        exec(patch, names | {"take": loop.accumulate_gradients, "place": place, "rank": place().rank})
        code = __main__.main(["train", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
