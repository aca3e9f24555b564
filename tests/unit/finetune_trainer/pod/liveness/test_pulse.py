"""A rank writes signs of life while its main thread works, and as long as its watchdog runs."""

import time
from pathlib import Path

import pytest

from finetune_trainer.pod.liveness import watchdog
from finetune_trainer.pod.liveness.heartbeat import LEAST_SECONDS
from finetune_trainer.pod.liveness.pulse import START_SECONDS, Pulse, Sign
from finetune_trainer.pod.rank import Place


def test_the_watchdog_of_a_rank_signs_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    here = Place(1, 2, tmp_path)
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    pulse = Pulse(here)
    assert pulse.read() == Sign(0, START_SECONDS)
    with watchdog.watched(None, lambda failure: None):
        deadline = time.monotonic() + 30
        while (last := pulse.read()).number < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert LEAST_SECONDS < last.seconds <= LEAST_SECONDS + watchdog.MARGIN_SECONDS + watchdog.FUSE_SIGNAL


def test_a_process_without_other_ranks_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Pulse(Place()).sign(1)
    assert list(tmp_path.iterdir()) == []


def test_a_sign_replaces_the_one_before(tmp_path: Path) -> None:
    pulse = Pulse(Place(0, 2, tmp_path))
    for seconds in (10**9, 1):
        pulse.sign(seconds)
    assert pulse.read() == Sign(2, 1)
    assert Pulse(Place(0, 2, tmp_path)).read() == Sign(2, 1), "also for the launcher"
