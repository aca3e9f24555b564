"""A training that was killed and resumed is the same training."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.resume.histories import PREEMPTED, Kill, attempt, checkpoints
from benchmarks.resume.job import SPECS
from benchmarks.resume.serve import Server
from tests.integration.finetune_trainer.resume.conftest import Live

TERM, KILL = signal.SIGTERM, signal.SIGKILL
MOMENTS = 12
"""Number of moments, evenly spread over a run, at which SIGTERM is sent."""


def after(step: int, kind: signal.Signals, delay: float = 0.0) -> Kill:
    return Kill(kind, f"Training: step {step} ", delay)


@pytest.mark.thorough_for("8-bit", "dora", "full", "early")
@pytest.mark.parametrize("name", SPECS)
def test_after_kills_weights_steps_and_curve_are_those_of_the_uninterrupted_run(
    name: str, uninterrupted: Live, interrupted: Live
) -> None:
    whole = uninterrupted(name)
    kills = after(3, KILL), after(5, TERM), after(7, KILL, 0.01), after(9, TERM, 0.02), after(11, KILL)
    history = interrupted(name, *kills)
    assert len(history.attempts) >= 4
    assert history.results == whole.results
    assert history.results["weights"]


@pytest.mark.parametrize("name", ["lora", "full", "early"])
def test_the_best_weights_of_an_earlier_attempt_are_published(
    name: str, uninterrupted: Live, interrupted: Live
) -> None:
    whole = uninterrupted(name)
    best = min(whole.results["curve"], key=lambda point: point["loss"])["step"]
    history = interrupted(name, after(best + 1, TERM))
    assert history.attempts[1].first_step > best
    assert history.results == whole.results


def test_early_stopping_counts_what_earlier_attempts_measured(uninterrupted: Live, interrupted: Live) -> None:
    whole = uninterrupted("early")
    last = len(whole.results["steps"])
    (planned,) = set(re.findall(r"^Training: step \d+ of (\d+)", whole.attempts[0].log, re.MULTILINE))
    assert last < int(planned), "it stopped early"
    history = interrupted("early", after(last - 1, TERM))
    assert len(history.results["steps"]) == last


def test_sigterm_at_any_moment_ends_as_preempted_within_seconds_and_loses_no_step(
    server: Server, uninterrupted: Live, started: Callable[[str], Path]
) -> None:
    seconds = uninterrupted("early").attempts[0].seconds
    for part in range(MOMENTS):
        folder = started("early")
        first = attempt(server, folder, 1, Kill(TERM, delay=seconds * (part + 0.5) / MOMENTS))
        if first.stopping is None or (first.code == 0 and (folder / "out" / "manifest.json").exists()):
            continue  # it ended before, or had published its results
        assert first.code == PREEMPTED, first.log
        assert first.stopping < 5, first.log
        assert first.message["reason"] == "Preempted"
        uploaded = first.message.get("checkpointStep")
        assert (first.message.get("step") or 0) == (uploaded or 0), first.log  # no checkpoint before the first step
        if not (folder / "out" / "manifest.json").exists():
            assert all((found / "manifest.json").exists() for found in checkpoints(folder))
            second = attempt(server, folder, 2)
            assert second.code == 0, second.log
            taken_over = "The tuned weights are those of attempt 1" in second.log
            assert taken_over or second.first_step == (uploaded or 0)


def test_sigterm_loses_no_step(interrupted: Live) -> None:
    history = interrupted("lora", after(5, TERM))
    first, second = history.attempts
    assert first.code == PREEMPTED
    assert first.message["step"] == first.message["checkpointStep"] == second.first_step >= 5
    assert f"stopped after step {second.first_step} of" in first.message["message"]
    assert f"Resumed at step {second.first_step} from the checkpoint of attempt 1." in second.log
