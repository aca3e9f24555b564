"""The short form of `make chaos`: eight faults, once each, every one in another phase where it can be."""

import pytest

from tests.chaos import trial
from tests.chaos.scene import Scene
from tests.chaos.table import FAULTS, SHORT

CHOSEN = [fault for name in SHORT for fault in FAULTS if fault.name == name]


@pytest.fixture(scope="session")
def phase_seconds(scene: Scene) -> dict[str, float]:
    """How long a job without a fault spends in each phase."""
    return trial.measure_phases(scene)


@pytest.mark.parametrize("number", range(len(CHOSEN)), ids=SHORT)
def test_a_job_survives_a_fault_and_says_why(scene: Scene, phase_seconds: dict[str, float], number: int) -> None:
    fault = CHOSEN[number]
    phase = fault.phases[number % len(fault.phases)]

    found = trial.attempt(scene, fault, phase, number, phase_seconds[phase])

    assert found.ended_right, found
    assert found.right_reason, found
    assert found.little_lost, found
