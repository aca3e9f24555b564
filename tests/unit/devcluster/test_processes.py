"""Processes are identified by id and start time, waited for, and stopped."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from devcluster.processes import Processes
from devcluster.progress import ClusterError

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()",
]


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


def test_a_started_process_is_found_by_another_command_and_stopped_by_it(processes: Processes, tmp_path: Path) -> None:
    pid = processes.start("one", FOREVER)

    later = Processes(tmp_path)
    assert later.running() == {"one": pid}
    later.stop_all()

    assert later.running() == {}
    assert later.recorded() == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_ignores_sigterm_is_killed(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devcluster.processes.PATIENCE_SECONDS", 0.2)
    processes.start("stubborn", STUBBORN)
    processes.wait_for("it", lambda: "up" in (processes.logs / "stubborn.log").read_text(), ["stubborn"])

    processes.stop_all()

    assert processes.running() == {}


def test_another_process_with_a_recorded_id_is_never_touched(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text(json.dumps({"old": [os.getpid(), 1]}))

    assert processes.running() == {}
    processes.stop_all()  # would end this test run


def test_a_component_that_ends_while_starting_is_named_with_the_end_of_its_log(processes: Processes) -> None:
    processes.start("etcd", [sys.executable, "-c", "print('no space left')"])

    with pytest.raises(ClusterError, match=r"(?s)etcd ended while starting.*no space left"):
        processes.wait_for("the API server", lambda: False, ["etcd"])


def test_waiting_ends_with_the_log_of_what_was_waited_for(processes: Processes) -> None:
    processes.start("slow", FOREVER)
    try:
        with pytest.raises(ClusterError, match=r"the node was not ready after 0 s"):
            processes.wait_for("the node", lambda: False, ["slow"], timeout=0.3)
    finally:
        processes.stop_all()


def test_a_paused_process_is_stopped_and_forgotten_and_the_others_go_on(processes: Processes) -> None:
    processes.start("paused", FOREVER)
    other = processes.start("other", FOREVER)
    processes.send("paused", signal.SIGSTOP)

    processes.stop("paused", "unknown")

    assert processes.running() == {"other": other}
    assert processes.recorded() == ["other"]
    with pytest.raises(ClusterError, match="paused is not running, so it gets no SIGCONT"):
        processes.send("paused", signal.SIGCONT)
    processes.stop_all()


def test_a_component_that_is_started_again_keeps_its_log(processes: Processes) -> None:
    for word in ("first", "second"):
        processes.start("etcd", [sys.executable, "-c", f"print('{word}')"])
        processes.wait_for("its end", lambda: "etcd" not in processes.running(), [])

    assert (processes.logs / "etcd.log").read_text().split() == ["first", "second"]
    processes.delete_logs()
    assert not processes.logs.exists()
