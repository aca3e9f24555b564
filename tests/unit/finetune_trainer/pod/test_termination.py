"""How a pod ends."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import StopRequested, TrainerFailure


@given(st.text(max_size=3000) | st.text('\x00"\\ä€', max_size=3000))
def test_a_message_never_exceeds_what_the_kubelet_reads(text: str) -> None:
    message = TerminationMessage(reason=FailureReason.DATASET_INVALID, message=text.encode(errors="replace").decode())
    written = termination.termination_json(message)
    assert len(written.encode()) <= 4096
    found = TerminationMessage.model_validate_json(written)
    assert found.reason == message.reason
    assert found == message or message.message.startswith(found.message.removesuffix("..."))


def test_a_long_message_keeps_most_of_its_room() -> None:
    message = TerminationMessage(reason=FailureReason.DATASET_INVALID, message="x" * 10_000, step=3)
    written = termination.termination_json(message)
    assert 3500 < len(written) <= 4096
    assert TerminationMessage.model_validate_json(written).step == 3


@pytest.mark.usefixtures("handled")
def test_the_message_is_left_where_the_kubelet_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    termination.write_termination_message(TerminationMessage(reason="Succeeded", message="Done."))
    assert (tmp_path / "log").read_text() == '{"reason":"Succeeded","message":"Done."}'


@pytest.mark.usefixtures("handled")
def test_sigterm_stops_at_once() -> None:
    with pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
    assert termination.stop_requested()


@pytest.mark.usefixtures("handled")
def test_sigterm_stops_again_what_a_library_has_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "AGAIN_SECONDS", 0.05)
    with contextlib.suppress(BaseException):  # as a library with a bare except
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested):
        signal.pause()
    termination.write_failure(termination.failure_after_stop(StopRequested()))
    assert not termination._Stop.unreported, "the report of the end is not stopped"


@pytest.mark.usefixtures("handled")
def test_a_stop_for_another_cause_is_like_sigterm_and_names_the_cause() -> None:
    with pytest.raises(StopRequested) as stop:
        termination.stop_because("The power failed.")
    assert termination.stop_requested()
    assert termination.failure_after_stop(stop.value).message == "The power failed. Its work was not done."
    termination.stop_because("Something else happened.")
    assert termination.why_stopped() == "The power failed."


HANGING = """
import contextlib, time
from finetune_trainer.pod import termination
termination.AGAIN_SECONDS = 0.05
termination.handle_sigterm()
with termination.stop_deferred():
    termination.stop_because("The power failed.")
    while True:
        with contextlib.suppress(BaseException):  # as a library that never returns
            time.sleep(1)
"""


def test_a_process_that_hangs_in_its_own_stop_ends_after_the_grace_period() -> None:
    """The kubelet does not know of this stop, and would leave the GPU to the pod."""
    environment = {**os.environ, "GRACE_SECONDS": "0.2"}
    ended = subprocess.run([sys.executable, "-c", HANGING], env=environment, timeout=60, check=False)
    assert ended.returncode == FAILURES[FailureReason.PREEMPTED].exit_code


@pytest.mark.usefixtures("handled")
def test_a_crash_after_sigterm_is_that_of_a_library_that_was_interrupted() -> None:
    assert termination.failure_after_stop(ValueError("x")).reason is FailureReason.TRAINER_CRASHED
    with pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
    assert termination.failure_after_stop(ValueError("x")).reason is FailureReason.PREEMPTED
    own = TrainerFailure(FailureReason.LOSS_DIVERGED, "NaN.")
    assert termination.failure_after_stop(own) is own


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize(("grace", "left"), [("120", 105), ("10", 7.5), ("", 105)])
def test_part_of_the_grace_period_is_kept_for_the_report(
    monkeypatch: pytest.MonkeyPatch, grace: str, left: float
) -> None:
    monkeypatch.setenv("GRACE_SECONDS", grace)
    assert termination.seconds_left() == left
    with pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left - 1 < termination.seconds_left() <= left
    monkeypatch.setattr(termination._Stop, "since", termination._Stop.since - 200)
    assert termination.seconds_left() == 0


@pytest.mark.usefixtures("handled")
def test_the_message_of_a_failure_says_how_far_the_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    failure = TrainerFailure(FailureReason.GPU_FAULT, "The GPU fell off the bus.")
    termination.write_failure(failure)
    assert "tep" not in (tmp_path / "log").read_text()
    termination.steps_done(7, 5)
    termination.write_failure(failure)
    message = TerminationMessage.model_validate_json((tmp_path / "log").read_text())
    assert (message.step, message.checkpoint_step) == (7, 5)


@pytest.mark.usefixtures("handled")
def test_sigterm_waits_for_the_end_of_a_step() -> None:
    reached = []
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        assert not termination.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(termination.stop_requested())
    assert reached == [True]


@pytest.mark.usefixtures("handled")
def test_a_deferral_inside_another_one_does_not_end_it() -> None:
    reached = []
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        with termination.stop_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end of the outer one")
    assert reached


@pytest.mark.usefixtures("handled")
def test_a_deferred_stop_interrupts_work_that_hangs_in_time_for_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACE_SECONDS", "1.2")
    started = monotonic()
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)  # as a storage that does not answer
    passed = monotonic() - started
    assert passed < 1.2
    assert termination.seconds_left() == 0, "work that looks at the time ends by itself before"
    assert passed > termination.working_seconds()


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_does_not_replace_a_message_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    if times == 2:
        with pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGTERM)
    termination.write_failure(TrainerFailure(FailureReason.GPU_FAULT, "The GPU fell off the bus."))
    os.kill(os.getpid(), signal.SIGTERM)
    termination.stop_because("The power failed.")
    assert "fell off the bus" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("handled")
def test_sigterm_does_not_fail_a_pod_that_has_written_its_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    termination.write_termination_message(TerminationMessage(reason="Succeeded", message="Done."))
    os.kill(os.getpid(), signal.SIGTERM)
    assert not termination.stop_requested()


@pytest.mark.usefixtures("handled")
def test_a_full_disk_of_the_node_keeps_nothing_from_the_end_but_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", "/dev/full")
    termination.write_failure(TrainerFailure(FailureReason.DISK_FULL, "No disk space is left."))
    assert termination.is_reported()
    said = "The termination message could not be written to /dev/full: No space left on device.\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("handled")
def test_no_half_message_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reader of a half one would fail in its turn."""
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
    try:
        termination.write_failure(TrainerFailure(FailureReason.DISK_FULL, "No disk space is left."))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (tmp_path / "log").read_text() == ""
    assert "could not be written" in capsys.readouterr().err
