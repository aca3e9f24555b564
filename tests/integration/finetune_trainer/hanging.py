"""Runs one step of a job in a process in which something hangs. A stall shows in seconds instead of minutes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason

CODE = FAILURES[FailureReason.TRAINING_STALLED].exit_code
BEGINNING = """
import sys, time
from finetune_trainer.pod.liveness import heartbeat, watchdog

heartbeat.LEAST_SECONDS, watchdog.MARGIN_SECONDS = 3.0, 4.0

def hang(*_, **__):
    time.sleep(1000)

"""
END = """
from finetune_trainer.__main__ import main
sys.exit(main(["{step}", sys.argv[1]]))
"""


def run(step: str, bundle: Bundle, folder: Path, patch: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Runs `step`, preflight or train, after `patch`: lines of Python, in which `hang` never returns. Returns the end
    of the process, and the file of the termination message, which may not exist."""
    log = folder / "termination-log"
    (folder / "bundle.json").write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    lines = BEGINNING + textwrap.dedent(patch) + END.format(step=step)
    done = subprocess.run(
        [sys.executable, "-c", lines, str(folder / "bundle.json")],
        env=os.environ | {"TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, log
