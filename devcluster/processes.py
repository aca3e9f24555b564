"""Records processes that continue after the command that started them, by id and start time."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from devcluster.progress import ClusterError

LOG_LINES = 15
PATIENCE_SECONDS: float = 10
"""Seconds between SIGTERM and SIGKILL."""


class Processes:
    """The processes of one cluster. `folder` has the record, and `folder`/logs has one log for each component."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self._record = folder / "processes.json"

    def start(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> int:
        """Starts `command` in a separate session. Appends its output to logs/NAME.log. Returns its process id."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.adopt(name, process.pid)
        return process.pid

    def running(self) -> dict[str, int]:
        """Returns the process id of every component that is still running."""
        return {name: pid for name, (pid, started) in self._read().items() if _is_alive(pid, started)}

    def recorded(self) -> list[str]:
        """Returns the name of every component that was started and not stopped."""
        return list(self._read())

    def wait_for(self, what: str, ready: Callable[[], bool], needs: list[str], timeout: float = 60) -> None:
        """Waits until `ready`. Raises ClusterError with the log's end if one of `needs` ends or time runs out."""
        deadline = time.monotonic() + timeout
        while not ready():
            for name in needs:
                if name not in self.running():
                    raise ClusterError(f"{name} ended while starting. {self.tail(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} was not ready after {timeout:.0f} s. {self.tail(needs[-1])}")
            time.sleep(0.1)

    def tail(self, name: str) -> str:
        """Returns the end of a component's log with an introduction."""
        path = self.logs / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
        return "\n".join([f"The end of {path}:", *(f"  {line[:300]}" for line in lines)])

    def adopt(self, name: str, pid: int) -> None:
        """Records `pid` as the process of `name`."""
        self._write({**self._read(), name: (pid, _start_time(pid) or 0)})

    def stop_all(self, first: Sequence[str] = ()) -> None:
        """Stops all components and waits for their end: first those in `first`, then the others in reverse order."""
        record = self._read()
        self.stop(*first, *(name for name in reversed(record) if name not in first))
        self._record.unlink(missing_ok=True)

    def delete_logs(self) -> None:
        """Deletes the logs of an earlier cluster."""
        shutil.rmtree(self.logs, ignore_errors=True)

    def stop(self, *names: str) -> None:
        """Stops these components, one after another, waits for their ends and removes them from the record."""
        record = self._read()
        for name in names:
            if name in record:
                _stop(*record.pop(name))
        self._write(record)

    def send(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a component. Raises ClusterError if it is not running."""
        pid = self.running().get(name)
        if pid is None:
            raise ClusterError(f"{name} is not running, so it gets no {number.name}. {self.tail(name)}")
        if number is signal.SIGCONT:
            _signal(pid, number)  # nsenter pauses together with the process that it waits for
        _signal(_inner(pid), number)

    def _read(self) -> dict[str, tuple[int, int]]:
        try:
            return {name: (pid, started) for name, (pid, started) in json.loads(self._record.read_text()).items()}
        except FileNotFoundError:
            return {}

    def _write(self, record: dict[str, tuple[int, int]]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        draft = self._record.with_suffix(".new")
        draft.write_text(json.dumps(record, indent=1))
        draft.replace(self._record)


def _inner(pid: int) -> int:
    """Returns the process that nsenter waits for, or `pid` itself. nsenter does not pass signals on."""
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != "nsenter":
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return pid
    return int(children[0]) if children else pid


def _stop(pid: int, started: int) -> None:
    if not _is_alive(pid, started):
        return
    for paused in (pid, _inner(pid)):  # A paused process would not end.
        _signal(paused, signal.SIGCONT)
    _signal(_inner(pid), signal.SIGTERM)
    if not _gone_within(pid, started, PATIENCE_SECONDS):
        _signal(_inner(pid), signal.SIGKILL)
        _gone_within(pid, started, PATIENCE_SECONDS)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _gone_within(pid: int, started: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not _is_alive(pid, started):
            return True
        time.sleep(0.05)
    return False


def _is_alive(pid: int, started: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # An ended child process stays a zombie until this call.
    return _start_time(pid) == started


def _start_time(pid: int) -> int | None:
    """Returns the start time in clock ticks since boot. None if the process does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
