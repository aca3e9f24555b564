"""When the jobs under a shared fault start."""

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.figures.judge import Sample
from tests.chaos.phases import Phase
from tests.chaos.table import FAULTS, Task
from tests.chaos.trial import Hit, Undisturbed

TEN = dict.fromkeys(Phase, 10.0)
BASIS = Undisturbed(TEN, {phase: 10.0 * phase.rank for phase in Phase}, "")


@dataclass
class Watched:
    seconds: float
    samples: list[Sample] = field(default_factory=list)


def way(seconds: float, *seen: tuple[float, Phase | None]) -> float:
    watched: Any = Watched(seconds, [Sample(*look) for look in seen])
    lane: Any = None
    return Hit(lane, Task(FAULTS[0], Phase.TRAIN, 0), BASIS, watched).way


def test_a_job_is_as_far_as_its_phase_and_the_time_in_it_say() -> None:
    assert way(5) == 0
    assert way(5, (1, Phase.PREFLIGHT)) == 4
    assert way(6, (1, Phase.PREFLIGHT), (4, Phase.LOAD), (5, Phase.LOAD)) == 12


def test_a_slow_job_is_not_farther_than_its_phase() -> None:
    assert way(100, (1, Phase.PREFLIGHT), (90, None)) == 10
