"""The short form of `make chaos`: eight faults, each in another phase where it can be."""

import pytest

from tests.chaos.figures.judge import Outcome
from tests.chaos.run import Run
from tests.chaos.scene import Scene
from tests.chaos.table import FAULTS, SHORT, Task
from tests.chaos.trial import Undisturbed

CHOSEN = [fault for name in SHORT for fault in FAULTS if fault.name == name]
Shown = dict[str, Outcome | Exception]


@pytest.fixture(scope="session")
def shown(scene: Scene, basis: Undisturbed) -> Shown:
    """What each fault does, by its name."""
    shown: Shown = {}

    def tell(task: Task, found: Outcome | Exception) -> None:
        shown[task.fault.name] = found

    tasks = [Task(fault, fault.phases[place % len(fault.phases)], place) for place, fault in enumerate(CHOSEN)]
    # A shared fault would part the faults of single jobs into two groups. The longest fault of a group comes first.
    tasks.sort(key=lambda task: (task.fault.shared, not task.fault.lasts))
    Run(scene, basis, tell).make(tasks)
    return shown


@pytest.mark.parametrize("name", SHORT)
def test_a_job_survives_a_fault_and_says_why(shown: Shown, name: str) -> None:
    found = shown[name]

    assert isinstance(found, Outcome), found
    assert found.ended_right, found
    assert found.right_reason, found
    assert found.little_lost, found
    assert found.same_weights, found
