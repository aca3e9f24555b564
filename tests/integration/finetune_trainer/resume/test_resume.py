"""A training that was killed and resumed is the same training."""

import signal

import pytest

from benchmarks.resume.histories import PREEMPTED, Kill
from tests.integration.finetune_trainer.resume.conftest import SPECS, Live

TERM, KILL = signal.SIGTERM, signal.SIGKILL


def after(step: int, kind: signal.Signals, delay: float = 0.0) -> Kill:
    return Kill(kind, f"Training: step {step} ", delay)


@pytest.mark.parametrize("name", SPECS)
def test_after_kills_weights_steps_and_curve_are_those_of_the_uninterrupted_run(
    name: str, uninterrupted: Live, interrupted: Live
) -> None:
    whole = uninterrupted(name)
    history = interrupted(name, after(3, KILL), after(4, TERM), after(6, KILL, 0.01), after(7, TERM, 0.02))
    assert len(history.attempts) >= 3
    assert history.results == whole.results
    assert history.results["weights"]


def test_sigterm_loses_no_step(interrupted: Live) -> None:
    history = interrupted("lora", after(5, TERM))
    first, second = history.attempts
    assert first.code == PREEMPTED
    assert first.message["step"] == first.message["checkpointStep"] == second.first_step >= 5
    assert f"stopped after step {second.first_step} of" in first.message["message"]
    assert f"Resumed at step {second.first_step} from the checkpoint of attempt 1." in second.log
