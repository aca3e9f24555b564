"""A process that has loaded all libraries, and starts each run of the trainer as a process of its own by forking.

A run then takes a second instead of ten. Each line of the input is a request as JSON; each line of the output is how
the run ended. The run itself is `finetune_trainer.__main__.main`, as in a pod, with two additions: every step is a line
in the log, and the steps and the validation curve are written to a file when the results are published.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import reduce
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from finetune_api.reasons import FAILURES, FailureReason

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
"""A process may fork only if it has no threads. One thread also makes sums the same on every machine."""


class Server:
    """The forking process. Use it as a context manager."""

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.resume.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, **request: Any) -> dict[str, Any]:
        """Runs the trainer once, see `_run`."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def main() -> None:
    """Answers requests until the input ends."""
    import finetune_trainer.preflight.recipe
    import finetune_trainer.train.recipe  # noqa: F401 - loaded once for all runs

    _watch()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    for line in sys.stdin:
        answers.write(json.dumps(_run(**json.loads(line))) + "\n")
        answers.flush()


def _watch() -> None:
    """Makes every step a line in the log, and keeps the records of a finished training."""
    from finetune_trainer.train import recipe
    from finetune_trainer.training import training_progress

    training_progress.INTERVAL_SECONDS = 0.0  # type: ignore[attr-defined]
    publish = recipe.upload_results  # type: ignore[attr-defined]

    def recorded(storage: Any, results: Any, staging: Path) -> Any:
        if path := os.environ.get("RECORDS"):
            records = {
                "steps": [asdict(step) for step in results.steps],
                "curve": [asdict(point) for point in results.validation],
            }
            Path(path).write_text(json.dumps(records))
        return publish(storage, results, staging)

    recipe.upload_results = recorded  # type: ignore[attr-defined]


def _run(
    arguments: list[str], environment: dict[str, str], signal: int | None = None, line: str = "", delay: float = 0.0
) -> dict[str, Any]:
    """Runs the trainer with these arguments. Returns exit code (negative: the signal that ended it), log, seconds, and
    the seconds from the signal to the end.

    `signal`: sent `delay` seconds after the first line of the log that begins with `line`."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(arguments, environment, writing)
    os.close(writing)
    log, sent, killed = [], signal is None, 0.0
    with os.fdopen(reading, errors="replace") as lines:
        for text in lines:
            log.append(text)
            if not sent and text.startswith(line):
                time.sleep(delay)
                sent = True
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:  # it has not ended yet
                    os.kill(child, signal or 0)
                    killed = time.monotonic()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    ended = time.monotonic()
    stopping = ended - killed if killed else None
    return {"code": code, "log": "".join(log), "seconds": ended - started, "stopping": stopping}


def _become(arguments: list[str], environment: dict[str, str], log: int) -> None:
    """Turns this new process into a run of the trainer."""
    from finetune_trainer.__main__ import main as trainer

    code = 99
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        if place := os.environ.get("DIES_AT"):
            _die_at(place)
        if os.environ.get("KEEPS_EACH_BATCH"):
            _keep_each_batch()
        # As `python -m finetune_trainer` does before anything else.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(FAILURES[FailureReason.PREEMPTED].exit_code))
        print("Started.", flush=True)
        code = trainer(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _die_at(place: str) -> None:
    """Makes this process kill itself when a function is called. `place`: MODULE:FUNCTION:N, for its Nth call. DIES_BY
    names another signal than SIGKILL."""
    module, path, number = place.split(":")
    *parents, name = path.split(".")
    owner = reduce(getattr, parents, import_module(module))
    original, calls = getattr(owner, name), count(1)

    def function(*arguments: Any, **named: Any) -> Any:
        if next(calls) == int(number):
            os.kill(os.getpid(), signal.Signals[os.environ.get("DIES_BY", "SIGKILL")])
        return original(*arguments, **named)

    setattr(owner, name, function)


def _keep_each_batch() -> None:
    """Makes this process keep the answers of each batch at once, not every minute."""
    from finetune_trainer.evaluation import kept_answers

    kept_answers.PIECE_SECONDS, kept_answers.SHARE = 0.0, float("inf")


if __name__ == "__main__":
    main()
