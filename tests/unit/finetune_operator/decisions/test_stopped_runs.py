"""A Job or pod that is gone, was stopped, or is kept running by a sidecar: what the trainer wrote decides."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Companion, NodeState
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.decisions.attempts.recorded import attempts
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    HELD,
    NOW,
    PLACED,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    published,
    saying,
    validated,
    with_status,
)

STOPPED = {1: attempt(pod("Failed", exit_code=143))}


@pytest.mark.parametrize("attempts", [{}, STOPPED], ids=["gone", "stopped"])
@pytest.mark.parametrize(("passed", "end"), [(None, "Complete"), (True, "Complete"), (False, "Failed")])
def test_published_results_end_the_job_also_where_the_attempts_job_is_gone_or_was_stopped(
    passed: bool | None, end: str, attempts: dict[int, Run]
) -> None:
    remedy = FAILURES[FailureReason.EVALUATION_GATE_FAILED].remedy
    said = {
        "observedGeneration": 1,
        "artifacts": {
            "adapter": "s3://r/adapter",
            "report": "s3://r/report.html",
            "manifest": "s3://r/m",
            "digest": "0",
        },
        "evaluation": {"rows": 9, "verdict": "No gain.", "passed": passed, "observedTime": NOW.isoformat()},
        "conditions": [
            {
                "type": "Evaluated",
                "status": "True" if passed is not False else "False",
                "reason": "EvaluationGateFailed",
                "message": f"ExactMatch is 0.1, but its gate requires at least 0.9. No gain. {remedy}",
                "lastTransitionTime": NOW.isoformat(),
            }
        ],
    }

    plan = reconcile(validated(status=FineTuneJobStatus.model_validate(said), attempts=attempts), NOW)

    assert (state(plan), plan.create) == (end, [])
    assert message(plan).startswith("No gain." if passed is not False else "ExactMatch is 0.1, but its gate requires")
    assert message(plan).count(remedy) == (passed is False)


LOST = pod(node_state=NodeState.GONE, due=NOW, conditions=PLACED)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attempts": {1: attempt(LOST)}}, "NodeLost"),
        ({"attempts": {1: attempt(pod("Failed", exit_code=137))}}, "Killed"),
        ({"attempts": {}}, "Evicted"),
        ({"spec": SPEC.model_copy(update={"suspend": True})}, "Suspended"),
    ],
)
def test_an_attempt_that_missed_a_gate_and_ended_before_it_published_is_followed_by_another(
    changes: dict[str, Any], why: str
) -> None:
    running = validated(attempts={1: attempt(pod(conditions=PLACED))}, authors={"Trained": 1, "Evaluated": 1})
    running = with_status(running, reconcile(running, NOW))
    running = saying(running, ConditionType.TRAINED, reason="TrainingSucceeded")
    running = saying(running, ConditionType.EVALUATED, "False", "EvaluationGateFailed", "ExactMatch is 0.1.")
    publishing = reconcile(running, NOW)
    world = replace(with_status(running, publishing), **changes)

    ended = reconcile(world, NOW)
    (record,) = attempts(ended)
    resumed = replace(with_status(world, ended), attempts={}, spec=SPEC)

    assert (state(publishing), reason(publishing)) == ("Running", "Publishing")
    assert (record["reason"], record["stage"]) == (why, "Publishing")
    assert kinds(reconcile(resumed, NOW + timedelta(minutes=1)))[-1] == "Job"


def test_a_pod_that_could_not_write_that_it_has_published_ends_the_job_by_its_exit_code() -> None:
    ended = attempt(pod("Failed", exit_code=FAILURES[FailureReason.EVALUATION_GATE_FAILED].exit_code))
    world = saying(validated(attempts={1: ended}), ConditionType.EVALUATED, "False", "EvaluationGateFailed", "0.1.")

    assert reason(reconcile(world, NOW)) == "EvaluationGateFailed"


SIDECAR = {"companions": (Companion("istio-proxy", is_running=True),), "finished": NOW - timedelta(hours=1)}


@pytest.mark.parametrize(("exit_code", "end"), [(0, "Complete"), (29, "Failed")])
def test_a_pod_that_a_sidecar_keeps_running_goes_with_its_job(exit_code: int, end: str) -> None:
    world = published if exit_code == 0 else validated
    world = world(attempts={1: attempt(pod(exit_code=exit_code, **SIDECAR))})
    plan = reconcile(world, NOW)

    assert plan.delete_jobs == ["tickets-12345678-a1"]
    if not plan.is_final:
        plan = reconcile(replace(with_status(world, plan), attempts={}), NOW)
    assert state(plan) == end


@pytest.mark.parametrize(
    ("world", "reason_of_the_end"),
    [
        (validated(attempts={1: attempt(pod(exit_code=29, **SIDECAR))}), "LossDiverged"),
        (validated(attempts={1: attempt(pod(exit_code=0, **SIDECAR))}), "TrainerCrashed"),
        (fresh(preflight=preflight(pod(exit_code=21, **SIDECAR))), "DatasetInvalid"),
    ],
    ids=["an attempt", "an attempt without results", "a preflight"],
)
def test_an_end_is_on_record_before_the_job_of_the_pod_is_deleted(world: World, reason_of_the_end: str) -> None:
    """If the operator stops after it has deleted the Job, nothing else tells how it ended."""
    plan = reconcile(world, NOW)

    assert (state(plan), plan.is_final, len(plan.delete_jobs)) == ("Pending", False, 1)
    gone = replace(with_status(world, plan), attempts={}, preflight=None)
    ended = reconcile(gone, NOW)
    assert (state(ended), reason(ended), ended.create) == ("Failed", reason_of_the_end, [])


def test_a_preflight_that_a_sidecar_keeps_running_goes_while_training_begins() -> None:
    done = fresh(preflight=preflight(pod(exit_code=0, **SIDECAR)))

    plan = reconcile(done, NOW)
    again = reconcile(replace(done, attempts={1: attempt()}), NOW)

    assert [body["metadata"]["name"] for body in plan.create][-1] == "tickets-12345678-a1"
    assert plan.delete_jobs == again.delete_jobs == ["tickets-12345678-preflight"]


NAN = "Loss is NaN."


def test_an_attempt_whose_pod_is_gone_ends_with_what_it_said_in_the_status() -> None:
    world = saying(validated(attempts={1: attempt(failed=True)}), ConditionType.TRAINED, "False", "LossDiverged", NAN)

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert (reason(plan), plan.status["attempts"][0]["reason"]) == ("LossDiverged", "LossDiverged")
    assert message(plan) == f"{NAN} {FAILURES[FailureReason.LOSS_DIVERGED].remedy}"


@pytest.mark.parametrize(("said", "end"), [("LossDiverged", "Failed"), ("Preempted", "Pending")])
def test_an_attempt_whose_job_is_gone_ends_with_its_word(said: str, end: str) -> None:
    began = with_status(validated(), reconcile(validated(attempts={1: attempt(pod())}), NOW))
    world = saying(began, ConditionType.TRAINED, "False", said, NAN)

    plan = reconcile(world, NOW)

    assert (state(plan), kinds(plan)) == (end, [])
    assert plan.status is not None
    assert plan.status["attempts"][0]["reason"] == said


@pytest.mark.parametrize(("said", "end"), [("DatasetInvalid", "Failed"), ("Preempted", "Pending")])
def test_a_preflight_whose_job_is_gone_ends_with_its_word_unless_it_was_only_told_to_stop(said: str, end: str) -> None:
    for world in (fresh(), with_status(fresh(), reconcile(fresh(), NOW))):
        plan = reconcile(saying(world, ConditionType.VALIDATED, "False", said, "Row 7."), NOW)

        assert state(plan) == end


def test_the_words_of_an_earlier_preflight_are_not_those_of_one_whose_job_is_gone() -> None:
    failed = fresh(preflight=preflight(pod("Failed", exit_code=26), failed=True))
    world = with_status(failed, reconcile(failed, NOW))
    second = with_status(world, reconcile(world, NOW + timedelta(seconds=10)))
    said = saying(replace(second, preflight=None), ConditionType.VALIDATED, "False", "StorageUnavailable", "S3.")
    plan = reconcile(said, NOW + timedelta(seconds=20))

    assert plan.status is not None
    assert [record["reason"] for record in plan.status["preflights"]] == ["StorageUnavailable", "Evicted"]


@pytest.mark.parametrize("run", [preflight(failed=True), preflight(pod("Failed", exit_code=137)), preflight(**HELD)])
def test_a_preflight_that_was_stopped_after_its_good_word_is_done(run: Run) -> None:
    plan = reconcile(saying(fresh(preflight=run), ConditionType.VALIDATED), NOW)

    assert [body["metadata"]["name"] for body in plan.create][-1] == "tickets-12345678-a1"
    assert plan.delete_jobs == (["tickets-12345678-preflight"] if run.suspended else [])
