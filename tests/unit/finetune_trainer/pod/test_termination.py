"""How a pod ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import StopRequested


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


def test_the_message_is_left_where_the_kubelet_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    termination.write_termination_message(TerminationMessage(reason="Succeeded", message="Done."))
    assert (tmp_path / "log").read_text() == '{"reason":"Succeeded","message":"Done."}'


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(termination._Stop, "requested", False)
    before = signal.getsignal(signal.SIGTERM)
    termination.handle_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handled")
def test_sigterm_stops_at_once() -> None:
    with pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
    assert termination.stop_requested()


@pytest.mark.usefixtures("handled")
def test_sigterm_waits_for_the_end_of_a_step() -> None:
    reached = []
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        assert not termination.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(termination.stop_requested())
    assert reached == [True]
