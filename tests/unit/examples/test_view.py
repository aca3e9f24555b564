"""The demo shows a job's status while the job runs."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console
from rich.spinner import Spinner

from examples.demo.view import Phase, Timeline, detail, follow, phase_of, render
from finetune_api.status.job import FineTuneJobStatus, Stage

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
MOMENT = "2026-01-01T12:00:00Z"
PREFLIGHT = {"rows": 480, "tokens": 34228, "splits": {"train": 384, "test": 96}}
TRAINING = {
    "attempt": 1,
    "step": 31,
    "totalSteps": 48,
    "loss": 0.0412,
    "tokensPerSecond": 362.4,
    "observedTime": MOMENT,
}
DECISION = {"metric": "FieldMatch", "over": "FewShot", "baseline": 0.0, "tuned": 0.96875, "outcome": "Better"}
EVALUATION = {"rows": 96, "decision": DECISION, "observedTime": MOMENT}


def ready(message: str) -> list[dict[str, str]]:
    return [{"type": "Ready", "status": "False", "reason": "X", "message": message, "lastTransitionTime": MOMENT}]


STORY: list[dict[str, Any]] = [
    {"observedGeneration": -1},
    {"state": "Validating", "stage": "Preflight", "conditions": ready("Checking the data.")},
    {"state": "Queued", "conditions": ready("No node has a free GPU."), "preflight": PREFLIGHT},
    {"state": "Running", "stage": "Training", "preflight": PREFLIGHT, "training": TRAINING},
    {"state": "Running", "stage": "Evaluating", "preflight": PREFLIGHT, "training": TRAINING},
    {"state": "Running", "stage": "Publishing", "training": TRAINING, "evaluation": EVALUATION},
    {"state": "Complete", "preflight": PREFLIGHT, "training": TRAINING, "evaluation": EVALUATION},
]


def status(**fields: Any) -> FineTuneJobStatus:
    return FineTuneJobStatus.model_validate(fields)


def test_a_job_goes_through_the_phases_in_order() -> None:
    phases = [phase_of(FineTuneJobStatus.model_validate(chapter)) for chapter in STORY]
    assert phases == [Phase.PREFLIGHT, *Phase]


def test_training_shows_step_loss_speed_and_remaining_time() -> None:
    end = (NOW + timedelta(seconds=97)).isoformat()
    job = status(state="Running", stage="Training", training={**TRAINING, "estimatedCompletionTime": end})
    assert detail(Phase.TRAINING, job, NOW) == "31/48  loss 0.041  362 tokens/s  1:37 left"


def test_before_the_first_step_the_pods_message_is_shown() -> None:
    says = {"type": "Trained", "status": "False", "reason": "EvaluatingBase", "message": "Answering 96 held-out rows."}
    conditions = [*ready("Attempt 1 is running."), {**says, "lastTransitionTime": MOMENT}]
    job = status(state="Running", stage="Training", training={**TRAINING, "step": 0}, conditions=conditions)
    assert detail(Phase.TRAINING, job, NOW) == "Answering 96 held-out rows."


def test_a_waiting_job_shows_the_reason() -> None:
    job = status(state="Queued", conditions=ready("No node has a free GPU."))
    assert detail(Phase.QUEUED, job, NOW) == "No node has a free GPU."


def test_a_job_that_no_operator_has_seen_waits_for_the_operator() -> None:
    assert detail(Phase.PREFLIGHT, status(observedGeneration=-1), NOW) == "Waiting for the operator."


def test_the_evaluation_shows_the_change_of_the_deciding_metric() -> None:
    assert (
        detail(Phase.EVALUATING, status(state="Complete", evaluation=EVALUATION), NOW)
        == "FieldMatch 0% -> 97% on 96 held-out rows"
    )


def test_each_phase_lasts_until_the_next_observed_phase() -> None:
    moments = iter([0.0, 8.0, 100.0, 130.0])
    timeline = Timeline(clock=lambda: next(moments))
    for phase in (Phase.TRAINING, Phase.EVALUATING, Phase.ENDED):
        timeline.observe(phase)
    assert [timeline.seconds(phase) for phase in list(Phase)[:5]] == [8.0, None, 92.0, 30.0, None]


@pytest.mark.parametrize("width", [80, 160])
def test_on_a_terminal_every_phase_fits_its_line(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    timeline = Timeline()
    for chapter in STORY:
        job = FineTuneJobStatus.model_validate(chapter)
        timeline.observe(phase_of(job))
        with console.capture() as capture:
            console.print(render(job, timeline, Spinner("dots")))
        lines = capture.get().splitlines()
        assert len(lines) == 5
        assert max(map(len, lines)) <= width
        if job.stage is Stage.TRAINING:
            assert "384 training rows, 96 held-out rows, 34,228 tokens" in lines[0]
            assert "━━━" in lines[2]
            assert "31/48  loss 0.041  362 tokens/s" in lines[2]


def test_a_failed_job_is_marked_at_the_phase_it_failed_in() -> None:
    console = Console(file=io.StringIO(), width=80)
    timeline = Timeline()
    timeline.observe(Phase.TRAINING)
    timeline.observe(Phase.ENDED)
    with console.capture() as capture:
        console.print(render(status(state="Failed", conditions=ready("Out of memory.")), timeline, Spinner("dots")))
    marks = [line[:3].strip() for line in capture.get().splitlines()]
    assert marks == ["✓", "", "✗", "", ""]


def test_without_a_terminal_each_phase_gets_plain_lines() -> None:
    output = io.StringIO()
    console = Console(file=output, width=80)
    follow(iter([{"status": chapter} for chapter in STORY]), console)
    text = output.getvalue()
    assert "\x1b" not in text
    for phase in ("Preflight", "Queued", "Training", "Evaluating", "Publishing"):
        assert f"  {phase} " in text


def test_the_phases_do_not_show_why_a_job_failed() -> None:
    job = status(state="Failed", conditions=ready("Line 17 has no completion."))
    assert [detail(phase, job, NOW) for phase in list(Phase)[:5]] == [""] * 5
