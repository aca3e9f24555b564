"""How long the work may show no progress, and how a stall is described."""

import threading
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest

from finetune_trainer.pod.liveness import heartbeat, watchdog
from finetune_trainer.pod.liveness.heartbeat import (
    LEAST_SECONDS,
    attended,
    beat,
    beats,
    is_steady,
    patience,
    phase,
    position,
    quiet_work,
    stepped,
    waited,
)
from finetune_trainer.pod.liveness.watchdog import stall
from finetune_trainer.pod.progress import Progress


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a process that has done nothing."""
    monkeypatch.setattr(heartbeat, "_Heart", type("_Heart", (), dict(vars(heartbeat._Heart))))
    heartbeat._Heart.phase, heartbeat._Heart.step, heartbeat._Heart.slowest = "starting", None, 0.0
    heartbeat._Heart.steady, heartbeat._Heart.by_steps, heartbeat._Heart.longest_wait = False, False, 0.0
    heartbeat._Heart.looked = heartbeat._Heart.looked_before = 0.0


def test_before_the_first_step_the_default_is_five_minutes() -> None:
    assert patience(None) == LEAST_SECONDS == 300


@pytest.mark.parametrize(("slowest", "seconds"), [(2.0, 300), (30.0, 300), (31.0, 310), (600.0, 6000)])
def test_the_default_is_ten_times_the_slowest_step_and_at_least_five_minutes(slowest: float, seconds: float) -> None:
    for each in (0.5, slowest, 1.0):
        stepped(1, 3, each)
    assert patience(None) == seconds


def test_time_in_which_the_process_was_frozen_makes_no_step_slow() -> None:
    heartbeat.looked(50)
    stepped(1, 3, 50)
    heartbeat.looked(40)
    stepped(2, 3, 4000)
    assert patience(None) == 500


def test_a_timeout_of_the_job_holds_for_steady_work_after_its_first_sign() -> None:
    phase("training", steady=True)
    assert patience(60) == 300, "the first micro-batch may compile kernels"
    beat()
    assert patience(60) == 60
    assert patience(900) == 900
    phase("comparing the models")
    beat()
    assert (patience(60), patience(900)) == (300, 900)


def test_ten_times_the_longest_wait_of_steady_work_is_allowed_if_the_job_says_nothing_else() -> None:
    waited(40)
    waited(2)
    assert patience(None) == 400
    phase("reading the rows", steady=True)
    beat()
    assert (patience(None), patience(60)) == (400, 60)


def test_a_slow_token_of_the_evaluation_does_not_raise_the_limit_of_the_training() -> None:
    phase("generating answers with the base model", steady=True)
    beat()
    waited(95)
    phase("training", steady=True, by_steps=True)
    beat()
    stepped(1, 10, 2.0)
    assert patience(None) == 300
    stepped(2, 10, 40.0)
    assert patience(None) == 400
    phase("generating answers with the tuned model", steady=True)
    assert patience(None) == 950


def test_only_steady_work_that_has_begun_and_waits_for_nothing_is_measured() -> None:
    phase("reading the rows", steady=True)
    assert not is_steady(), "its first sign of progress may take long"
    beat()
    assert is_steady()
    with quiet_work(900):
        assert not is_steady(), "a storage that does not answer is no measure of the work"
    phase("splitting the rows")
    beat()
    assert not is_steady()


class Looks(threading.Event):
    """The looks of a watchdog. Before each of them the main thread does one piece of `work`."""

    def __init__(self, *work: Callable[[], None]) -> None:
        super().__init__()
        self._work = iter(work)

    def wait(self, timeout: float | None = None) -> bool:
        piece = next(self._work, None)
        if piece:
            piece()
        return piece is None


@pytest.mark.parametrize(("steady", "seconds"), [(True, 500), (False, 300)])
def test_the_watchdog_measures_the_longest_wait_of_steady_work(
    monkeypatch: pytest.MonkeyPatch, steady: bool, seconds: float
) -> None:
    monkeypatch.setattr(watchdog, "_arm", lambda seconds: None)

    def nothing() -> None:
        pass

    begin = partial(phase, "reading the rows", steady=steady)
    looks = Looks(begin, beat, *[nothing] * 49, beat, *[nothing] * 20, beat, beat)
    watchdog._watch(None, mock.Mock(), looks)
    assert patience(None) == seconds


def test_quiet_work_raises_the_limit_while_it_lasts_and_never_lowers_it() -> None:
    phase("training", steady=True)
    beat()
    with quiet_work(900):
        assert patience(60) == patience(None) == 900
        with quiet_work(10):
            assert patience(None) == 900
        assert patience(None) == 900
    assert (patience(None), patience(60)) == (300, 60)


def test_quiet_work_of_another_thread_does_not_raise_the_limit_of_the_main_thread() -> None:
    inside, over = threading.Event(), threading.Event()

    def upload() -> None:
        with quiet_work(900):
            inside.set()
            over.wait(60)

    thread = threading.Thread(target=upload)
    thread.start()
    assert inside.wait(60)
    try:
        assert patience(None) == 300
    finally:
        over.set()
        thread.join()


def test_every_sign_of_progress_is_a_beat() -> None:
    progress = Progress("Downloading", "MB")
    each = attended(range(9))
    signs = (
        beat,
        lambda: phase("training"),
        lambda: stepped(1, 2, 0.1),
        lambda: progress.advance(5),
        lambda: next(each),
    )
    for sign in signs:
        before = beats()
        sign()
        assert beats() > before


def test_a_stall_names_the_phase_and_the_last_step() -> None:
    phase("measuring the base model")
    assert stall(300).finding == "The trainer made no progress for 300 s while measuring the base model."
    assert stall(300).step is None
    phase("training")
    stepped(1200, 4000, 0.5)
    assert stall(310).finding == "The trainer made no progress for 310 s while training, after step 1,200 of 4,000."
    assert stall(310).step == 1200
    phase("merging")
    assert position() == "merging, after step 1,200 of 4,000"
