"""A rank that gives no sign of life is noticed after the time that its own watchdog would have taken."""

import os
from pathlib import Path

import pytest

from finetune_trainer.pod.liveness.pulse import START_SECONDS, Pulse
from finetune_trainer.pod.rank import Place
from finetune_trainer.ranks.vigil import MARGIN_SECONDS, SUSPICIOUS_SECONDS, Vigil, why_silent


@pytest.fixture
def ranks(tmp_path: Path) -> list[Place]:
    return [Place(rank, 2, tmp_path) for rank in range(2)]


def test_a_rank_may_be_silent_for_the_time_that_it_announced(ranks: list[Place]) -> None:
    vigil, pulse = Vigil(ranks), Pulse(ranks[1])
    pulse.sign(400)
    vigil.look(1)
    vigil.look(400 + MARGIN_SECONDS - 1)
    assert vigil.silence(ranks[1]) is None
    vigil.look(1)
    assert vigil.silence(ranks[1]) == 400 + MARGIN_SECONDS
    pulse.sign(400)
    vigil.look(1)
    assert vigil.silence(ranks[1]) is None, "it goes on"


def test_each_rank_counts_by_itself(ranks: list[Place]) -> None:
    vigil, pulses = Vigil(ranks), [Pulse(place) for place in ranks]
    for pulse in pulses:
        pulse.sign(10)
    vigil.look(1)
    for _ in range(100):
        pulses[0].sign(10)
        vigil.look(1)
    assert (vigil.silence(ranks[0]), vigil.silence(ranks[1])) == (None, 100)


def test_a_rank_has_time_to_start(ranks: list[Place]) -> None:
    vigil = Vigil(ranks)
    vigil.look(START_SECONDS + MARGIN_SECONDS - 1)
    assert vigil.silence(ranks[0]) is None
    vigil.look(1)
    assert vigil.silence(ranks[0]) is not None


def test_a_silence_of_seconds_is_suspicious_when_another_rank_has_stalled(ranks: list[Place]) -> None:
    vigil = Vigil(ranks)
    Pulse(ranks[0]).sign(1000)
    vigil.look(1)
    vigil.look(SUSPICIOUS_SECONDS)
    assert vigil.silence(ranks[0]) is None
    assert vigil.silence(ranks[0], suspected=True) == SUSPICIOUS_SECONDS


def test_a_process_that_sleeps_or_is_gone_says_nothing() -> None:
    assert why_silent(os.getpid()) == ""
    assert why_silent(2**22 + 1) == ""
