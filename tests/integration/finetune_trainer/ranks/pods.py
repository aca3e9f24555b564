"""A training with several processes, run as in its pod: by the launcher, as a process of its own."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from finetune_api.bundle import Bundle, TerminationMessage

SECONDS = 180.0
"""How long a whole training of a tiny model may take on a busy machine."""
LAUNCH = """
import sys
from finetune_trainer.ranks import vigil
from finetune_trainer.ranks.launcher import launch
from finetune_trainer.ranks.nodes import Node
vigil.MARGIN_SECONDS = 1.0
ranks, number, nodes, port, *command = sys.argv[1:]
sys.exit(launch(int(ranks), command, Node(int(number), int(nodes), "127.0.0.1", int(port), f"machine-{number}")))
"""
BEGINNING = """
import os, sys, time
from finetune_trainer import __main__, train
from finetune_trainer.pod.rank import place
from finetune_trainer.training import loop
take, rank = loop.accumulate_gradients, place().rank
"""
END = """
code = __main__.main(["train", *sys.argv[1:]])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


@dataclass(frozen=True)
class Pod:
    """A training whose processes run."""

    process: "subprocess.Popen[str]"
    """The launcher."""
    folder: Path

    @property
    def ranks(self) -> list[int]:
        """The identifiers of the processes of the ranks, in order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    @property
    def log(self) -> str:
        """What it has printed until now."""
        return (self.folder / "log").read_text()

    @property
    def errors(self) -> str:
        """What its processes have written to standard error until now."""
        return (self.folder / "errors").read_text()

    def wait_for(self, text: str) -> None:
        """Waits until the log contains `text`."""
        deadline = monotonic() + SECONDS
        while text not in self.log:
            assert self.process.poll() is None, self.errors
            assert monotonic() < deadline, self.log
            sleep(0.05)

    def end(self) -> tuple[int, TerminationMessage]:
        """Waits for the end. Returns the exit code and the termination message."""
        code = self.process.wait(SECONDS)
        return code, TerminationMessage.model_validate_json((self.folder / "termination").read_bytes())


Start = Callable[..., Pod]


def start_on_nodes(
    bundle: Bundle, folder: Path, patch: str, nodes: int = 2, ranks: int = 1, attempt: int = 1
) -> list[Pod]:
    """Starts an attempt on several nodes, all on this machine, with `ranks` processes on each. Their pods share no
    folder but the storage. The other parameters are those of `start`."""
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [
        start(bundle, folder / str(number), patch, ranks, attempt, (number, nodes, port)) for number in range(nodes)
    ]


def start(
    bundle: Bundle,
    folder: Path,
    patch: str = "",
    ranks: int = 0,
    attempt: int = 1,
    node: tuple[int, int, int] = (0, 1, 0),
) -> Pod:
    """Starts an attempt with the processes that the bundle asks for. `patch`: lines of Python that every rank runs
    first, with `ranks` processes. `node`: number of the node, number of nodes, and the port at which they meet."""
    folder.mkdir()
    path = folder / "bundle.json"
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    arguments = [str(path), "--attempt", str(attempt)]
    command = [sys.executable, "-m", "finetune_trainer", "train", *arguments]
    if patch:
        patched = [sys.executable, "-c", BEGINNING + textwrap.dedent(patch) + END, *arguments]
        command = [sys.executable, "-c", LAUNCH, str(ranks), *map(str, node), *patched]
    with (folder / "log").open("w") as log, (folder / "errors").open("w") as errors:
        environment = os.environ | {"TERMINATION_LOG": str(folder / "termination"), "OMP_NUM_THREADS": "1"}
        return Pod(subprocess.Popen(command, env=environment, stdout=log, stderr=errors, text=True), folder)
