"""Watches the job with kubectl."""

import json
import subprocess
import time
from collections.abc import Generator, Iterator
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from devcluster import ClusterError
from examples.demo.target import JOB, NAMESPACE, Target

TICK_SECONDS = 0.25
STALLED_AFTER_SECONDS = 600.0
"""Longest time without a change of the job. The slowest step on two cores takes a minute."""
SILENT_AFTER_SECONDS = 20.0
"""After this time without a change the watch is started again, because a watch can miss the job's end in silence."""
DELETED = f"FineTuneJob {JOB} was deleted while the demo was waiting for it. Run `make demo` again."


def changes(target: Target) -> Generator[dict[str, Any]]:
    """Yields the resource at each change, and also four times a second, so that clocks on the screen advance.

    Raises ClusterError if the job is deleted, does not change for ten minutes, or the API server is unreachable."""
    seen, changed = "", time.monotonic()
    while True:
        # This request detects a deleted job or an unreachable API server. A watch would only end without an error.
        found = target.tenant("get", "finetunejob", JOB, "--output=json", "--ignore-not-found")
        if not found:
            raise ClusterError(DELETED if seen else f"There is no FineTuneJob {JOB}.")
        queue: Queue[dict[str, Any] | None] = Queue()
        command = ["--namespace", NAMESPACE, "get", "finetunejob", JOB, "--watch", "--output-watch-events"]
        process = subprocess.Popen(
            [*target.kubectl_command, *command, "--output=json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        Thread(target=_read, args=(process.stdout, queue), daemon=True).start()
        try:
            for resource in _until_silent(queue, json.loads(found)):
                version = resource["metadata"]["resourceVersion"]
                if version != seen:
                    seen, changed = version, time.monotonic()
                if time.monotonic() - changed > STALLED_AFTER_SECONDS:
                    minutes = f"{STALLED_AFTER_SECONDS / 60:.0f}"
                    raise ClusterError(f"The job's status has not changed for {minutes} minutes.")
                yield resource
        finally:
            process.terminate()
            process.wait()


def _until_silent(queue: Queue[dict[str, Any] | None], latest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the resource until the watch is closed, or has reported nothing for a while."""
    heard = time.monotonic()
    while time.monotonic() - heard < SILENT_AFTER_SECONDS:
        try:
            event = queue.get(timeout=TICK_SECONDS)
        except Empty:
            yield latest
            continue
        if event is None:
            return
        if event["type"] == "DELETED":
            raise ClusterError(DELETED)
        heard, latest = time.monotonic(), event["object"]
        yield latest


def _read(stream: IO[str], queue: Queue[dict[str, Any] | None]) -> None:
    for line in stream:  # kubectl prints each watch event as one line of JSON
        queue.put(json.loads(line))
    queue.put(None)
