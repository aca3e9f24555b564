"""A training with several processes, run as in its pod: by the launcher, with a folder of its own."""

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
from finetune_trainer.ranks.launcher import ONE_NODE
from finetune_trainer.ranks.nodes import Node
from tests.integration.finetune_trainer.ranks.forked import Launcher

SECONDS = 180.0
"""How long a whole training of a tiny model may take on a busy machine."""


@dataclass(frozen=True)
class Pod:
    """A training whose processes run."""

    process: "subprocess.Popen[bytes] | Launcher"
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
    bundle: Bundle, folder: Path, patch: str = "", nodes: int = 2, ranks: int = 1, attempt: int = 1
) -> list[Pod]:
    """Starts an attempt on several nodes, all on this machine, with `ranks` processes on each. Their pods share no
    folder but the storage. The other parameters are those of `start`."""
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [
        start(bundle, folder / str(i), patch, ranks, attempt, Node(i, nodes, "127.0.0.1", port, f"machine-{i}"))
        for i in range(nodes)
    ]


def start(
    bundle: Bundle,
    folder: Path,
    patch: str = "",
    ranks: int = 0,
    attempt: int = 1,
    node: Node = ONE_NODE,
) -> Pod:
    """Starts an attempt. `patch`: lines of Python that every rank runs first. `ranks`: number of the processes of the
    pod; by default as many as the bundle asks for. `node`: its node among those of the training."""
    arguments = _files(bundle, folder, attempt)
    number = ranks or bundle.spec.compute.gpus_per_node
    return Pod(Launcher(folder, node, number, arguments, textwrap.dedent(patch)), folder)


def start_command(bundle: Bundle, folder: Path) -> Pod:
    """Starts the first attempt by the command that the pod runs."""
    command = [sys.executable, "-m", "finetune_trainer", "train", *_files(bundle, folder, attempt=1)]
    environment = os.environ | {"TERMINATION_LOG": str(folder / "termination"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log, (folder / "errors").open("w") as errors:
        return Pod(subprocess.Popen(command, env=environment, stdout=log, stderr=errors), folder)


def _files(bundle: Bundle, folder: Path, attempt: int) -> list[str]:
    """Makes the folder of the pod, with the bundle and what it will write to. Returns the arguments of the command."""
    folder.mkdir()
    for name in ("log", "errors"):
        (folder / name).touch()
    path = folder / "bundle.json"
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    return [str(path), "--attempt", str(attempt)]
