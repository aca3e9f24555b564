"""Goodput under interruptions: the time of the steps that are kept, over the time that pods ran."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.resume.histories import PREEMPTED, prepare, start
from benchmarks.resume.job import bundle_of, write_inputs
from finetune_api.bundle import Bundle

MODEL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
"""So large that a step takes about a tenth of a second."""
ROWS = 2_000
"""So many that 100 epochs, the most a job may have, are enough."""
CASES = ((signal.SIGTERM, 120.0, 300.0), (signal.SIGKILL, 600.0, 700.0))
"""Signal, seconds of an attempt until it is sent, and seconds of steps in the whole run."""


@dataclass(frozen=True)
class Life:
    """A job that was interrupted again and again."""

    attempts: int
    pod_seconds: float
    """Time of all processes together, from their start to their end."""
    step_seconds: float
    """Time of the steps whose result is kept."""
    cost: str
    """What the checkpoints cost in the last attempt that trained to the end, in the words of its log."""


def goodput(folder: Path) -> Iterator[str]:
    """Yields the lines of the results as Markdown, each as soon as it is known."""
    write_inputs(folder, ROWS, **MODEL)
    speed = seconds_per_step(folder)
    yield "| interruption | attempts | pods ran | goodput | from scratch | checkpoints of the last training |"
    yield "| --- | --: | --: | --: | --- | --- |"
    for kind, every, wanted in CASES:
        parts = {"training": {"epochs": 100, "maxSteps": round(wanted / speed), "learningRate": 0.001}}
        life = live(bundle_of(folder, parts), folder / kind.name, kind, every)
        scratch = "never ends" if life.step_seconds > every else "ends"
        yield (
            f"| {kind.name} every {every:.0f} s | {life.attempts} | {life.pod_seconds:.0f} s "
            f"| {life.step_seconds / life.pod_seconds:.1%} | {scratch} | {life.cost} |"
        )


def seconds_per_step(folder: Path) -> float:
    """Returns the mean duration of a step of the job."""
    life = live(bundle_of(folder, {"training": {"epochs": 100, "maxSteps": 60}}), folder / "speed", None, 0)
    return life.step_seconds / 60


def live(bundle: Bundle, folder: Path, kind: signal.Signals | None, every: float) -> Life:
    """Runs attempts of the job, each a new process that gets the signal after `every` seconds, until one succeeds."""
    start(bundle, prepare(bundle, folder / "prepared"), folder / "job")
    attempts, pod_seconds, cost = 0, 0.0, ""
    while True:
        attempts += 1
        started = time.monotonic()
        command = [sys.executable, "-m", "finetune_trainer", "train", str(folder / "job" / "bundle.json")]
        process = subprocess.Popen(
            [*command, "--attempt", str(attempts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"POD_UID": f"pod-{attempts}", "OMP_NUM_THREADS": "1"},
        )
        try:
            log = process.communicate(timeout=every if kind else None)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(kind or 0)
            log = process.communicate()[0]
        pod_seconds += time.monotonic() - started
        cost = next((line for line in log.splitlines() if line.startswith("Checkpoints: ")), cost)
        if process.returncode == 0:
            manifest = json.loads((folder / "job" / "out" / "manifest.json").read_text())
            return Life(attempts, pod_seconds, manifest["training"]["seconds"], cost)
        assert process.returncode in (PREEMPTED, -signal.SIGKILL), log
