"""Histories of a job: attempts that are killed, and a last one that ends by itself."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.resume.serve import Server
from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason

PREEMPTED = FAILURES[FailureReason.PREEMPTED].exit_code
STEP = re.compile(r"^Training: step ([\d,]+) of", re.MULTILINE)
RESUMED = re.compile(r"Resumed at step ([\d,]+) from")
COST = re.compile(r"Training waited ([\d.]+) s for them, and their upload took ([\d.]+) s .*?% of ([\d.]+) s")
MOST_ATTEMPTS = 40


@dataclass(frozen=True)
class Kill:
    """When an attempt is killed: `delay` seconds after the log's first line that begins with `line`."""

    signal: signal.Signals
    line: str = "Started."
    delay: float = 0.0


@dataclass(frozen=True)
class Ended:
    """One attempt."""

    code: int
    log: str
    seconds: float
    kill: Kill | None
    stopping: float | None
    """Seconds from the kill to the end; None if it ended before."""
    message: dict[str, Any]
    """The termination message; empty if the process left none."""

    @property
    def first_step(self) -> int:
        """The step with which the attempt began; 0 if from scratch."""
        found = RESUMED.search(self.log)
        return _number(found[1]) if found else 0

    @property
    def last_step(self) -> int:
        """The last step in its log, or the step with which it began."""
        return max([self.first_step, *(_number(step) for step in STEP.findall(self.log))])

    @property
    def resumed(self) -> bool:
        """Whether it took steps, and so looked for a checkpoint."""
        return bool(STEP.search(self.log) or RESUMED.search(self.log))

    @property
    def cost(self) -> tuple[float, float]:
        """Seconds that checkpoints cost, and seconds of its training; zeros if it was killed or wrote none."""
        found = COST.search(self.log)
        return (float(found[1]) + float(found[2]), float(found[3])) if found else (0.0, 0.0)


@dataclass
class History:
    """All attempts of one job."""

    folder: Path
    attempts: list[Ended] = field(default_factory=list)

    @property
    def repeated(self) -> list[tuple[Ended, int]]:
        """Each attempt that was killed after a step, and the number of its steps that a later attempt took again."""
        pairs, done, last = [], 0, None
        for ended, following in pairwise(self.attempts):
            if ended.last_step > done:
                done, last = ended.last_step, ended
            if last and following.resumed:
                pairs.append((last, max(0, done - following.first_step)))
                done, last = following.first_step, None
        return pairs

    @property
    def results(self) -> dict[str, Any]:
        """What must not depend on interruptions: the weights, and the records of steps and validation without times."""
        records = json.loads((self.folder / "records.json").read_text())
        timed = {"seconds", "memory"}
        return {
            "weights": {path.name: path.read_bytes() for path in (self.folder / "out").glob("*/*.safetensors")},
            "steps": [{key: value for key, value in step.items() if key not in timed} for step in records["steps"]],
            "curve": [{key: value for key, value in point.items() if key not in timed} for point in records["curve"]],
        }


def prepare(bundle: Bundle, folder: Path) -> Path:
    """Runs the preflight of the job in `folder`/out. Returns the folder."""
    folder.mkdir(parents=True)
    _write_bundle(bundle, folder)
    # Not by the server: preflight hides torch, which the server has loaded.
    command = [sys.executable, "-m", "finetune_trainer", "preflight", str(folder / "bundle.json")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return folder


def live(server: Server, bundle: Bundle, prepared: Path, folder: Path, kills: Iterator[Kill | None]) -> History:
    """Runs attempts of the job in the new folder `folder`, each with the next of `kills`, until one succeeds.

    `prepared`: a folder that `prepare` has made. Without a kill an attempt ends by itself."""
    start(bundle, prepared, folder)
    history = History(folder)
    for number in range(1, MOST_ATTEMPTS + 1):
        history.attempts.append(attempt(server, folder, number, next(kills, None)))
        ended = history.attempts[-1]
        if ended.code == 0:
            return history
        assert ended.kill, ended.log
        assert ended.code in (PREEMPTED, -signal.SIGKILL), f"exit code {ended.code}\n{ended.log}"
    raise AssertionError(f"the job did not end in {MOST_ATTEMPTS} attempts\n{history.attempts[-1].log}")


def start(bundle: Bundle, prepared: Path, folder: Path) -> Path:
    """Makes the folder of a job of which no attempt has started yet. Returns it."""
    shutil.copytree(prepared, folder)
    _write_bundle(bundle, folder)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    """Returns the folders of the checkpoints of the job in `folder`, oldest first."""
    return sorted((folder / "out").glob(".work/*/checkpoints/step-*"))


def attempt(
    server: Server, folder: Path, number: int, kill: Kill | None = None, *more: str, **environment: str
) -> Ended:
    """Runs one attempt of the job in `folder`. `more`: arguments of the command."""
    log = folder / "termination-log"
    log.unlink(missing_ok=True)
    ended = server.run(
        arguments=["train", str(folder / "bundle.json"), "--attempt", str(number), *more],
        environment={
            "POD_UID": f"pod-{number}",
            "TERMINATION_LOG": str(log),
            "RECORDS": str(folder / "records.json"),
            **environment,
        },
        **({"signal": kill.signal, "line": kill.line, "delay": kill.delay} if kill else {}),
    )
    message = json.loads(log.read_text()) if log.exists() else {}
    return Ended(ended["code"], ended["log"], ended["seconds"], kill, ended["stopping"], message)


def _write_bundle(bundle: Bundle, folder: Path) -> None:
    data = bundle.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["spec"]["output"]["uri"] = str(folder / "out")
    (folder / "bundle.json").write_text(json.dumps(data))


def _number(text: str) -> int:
    return int(text.replace(",", ""))
