"""A job fails only after its last pod has stopped, and says meanwhile what it waits for."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.decisions.attempts.recorded import attempts
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PLACED, SPEC, attempt, pod, saying, validated, with_status


def test_a_deadline_ends_a_job_whose_pod_nobody_has_asked_to_stop() -> None:
    """kubectl delete job --cascade=orphan."""
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=600)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    left = replace(running, remains={1: (pod("Running", started=NOW),)})
    waits = reconcile(left, NOW + timedelta(seconds=10))
    ended = reconcile(with_status(left, waits), NOW + timedelta(seconds=610))

    assert (state(ended), reason(ended)) == ("Failed", "DeadlineExceeded")


def test_a_job_past_its_deadline_says_so_while_its_pod_stops() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=600)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    suspended = spec.model_copy(update={"suspend": True})
    held = replace(running, spec=suspended, attempts={1: attempt(pod(started=NOW))})
    held = with_status(held, reconcile(held, NOW + timedelta(seconds=590)))
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=710))
    plan = reconcile(replace(held, spec=spec, attempts={}, remains={1: (leaving,)}), NOW + timedelta(seconds=610))

    assert (state(plan), reason(plan)) == ("Pending", "Stopping")
    assert "activeDeadlineSeconds" in message(plan)
    assert "suspend" not in message(plan)


def past_its_deadline() -> World:
    """The deadline of 600 s is on record, and the pod stores its checkpoint."""
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=600)})
    running = validated(spec=spec, attempts={1: attempt(pod(started=NOW, conditions=PLACED))})
    running = with_status(running, reconcile(running, NOW))
    late = with_status(running, reconcile(running, NOW + timedelta(seconds=600)))
    leaving = pod("Running", started=NOW, conditions=PLACED, due=NOW + timedelta(seconds=720))
    return replace(late, attempts={}, remains={1: (leaving,)})


@pytest.mark.parametrize("seconds", [None, 7200])
def test_a_deadline_that_is_raised_while_the_pod_stops_lets_the_job_go_on(seconds: int | None) -> None:
    world = past_its_deadline()
    raised = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=seconds, max_retries=0)})
    world = replace(world, spec=raised)
    waits = reconcile(world, NOW + timedelta(seconds=610))
    after = reconcile(replace(with_status(world, waits), remains={}), NOW + timedelta(seconds=660))

    assert (state(waits), kinds(waits)) == ("Pending", [])
    assert (kinds(after)[-1], attempts(after)[0]["reason"]) == ("Job", "DeadlineExceeded")
    assert after.status is not None
    assert after.status["counts"] == {"attempts": 2, "reasons": {"DeadlineExceeded": 1}}


def test_a_job_fails_with_the_deadline_that_its_spec_has_in_the_end() -> None:
    world = past_its_deadline()
    changed = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=620)})
    world = replace(world, spec=changed, remains={})

    assert message(reconcile(world, NOW + timedelta(seconds=660))).startswith("The job had not ended 620 s after")


def test_a_job_that_is_suspended_while_it_stops_at_its_deadline_fails_when_it_is_resumed() -> None:
    world = past_its_deadline()
    assert world.spec is not None
    held = replace(world, spec=world.spec.model_copy(update={"suspend": True}), remains={})
    plan = reconcile(held, NOW + timedelta(seconds=660))
    resumed = replace(with_status(held, plan), spec=world.spec)

    assert (state(plan), reason(reconcile(resumed, NOW + timedelta(seconds=700)))) == ("Suspended", "DeadlineExceeded")


def test_what_a_pod_says_while_it_stops_at_a_deadline_counts_if_the_deadline_is_raised() -> None:
    world = replace(past_its_deadline(), spec=SPEC, remains={})
    world = saying(world, ConditionType.TRAINED, "False", "LossDiverged", "Loss is NaN.")

    assert reason(reconcile(world, NOW + timedelta(seconds=660))) == "LossDiverged"


def test_a_job_ends_after_the_last_pod_has_stopped_and_pays_for_it_until_then() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(max_interruptions=0)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=120))
    world = replace(running, remains={1: (leaving,)})

    stops = reconcile(world, NOW + timedelta(seconds=10))
    ended = reconcile(replace(with_status(world, stops), remains={}), NOW + timedelta(seconds=30))

    assert (state(stops), reason(stops), stops.requeue_after) == ("Pending", "Stopping", timedelta(seconds=20))
    assert message(stops).endswith(
        "was deleted before its work was done. The job waits for the end of pod tickets-12345678-x."
    )
    assert (state(ended), attempts(ended)[0]["gpuSeconds"]) == ("Failed", 30)
    assert "maxInterruptions allows 0" in message(ended)


POD = "tickets-12345678-x"


@pytest.mark.parametrize(
    ("spec", "end"),
    [
        ({"suspend": True}, "Suspended"),
        ({"run_policy": RunPolicy(budget=Budget(gpu_hours=0.01))}, "Suspended"),
        ({"run_policy": RunPolicy(max_interruptions=0)}, "Pending"),
        ({}, "Pending"),
    ],
    ids=["suspended", "over its budget", "about to fail", "about to try again"],
)
def test_a_job_whose_pod_was_left_behind_says_so_and_how_to_end_it(spec: dict[str, object], end: str) -> None:
    """kubectl delete job --cascade=orphan."""
    running = with_status(validated(), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    running = replace(running, spec=SPEC.model_copy(update=spec))
    leaving = replace(running, remains={1: (pod(started=NOW, due=NOW + timedelta(seconds=720)),)})
    left = replace(running, remains={1: (pod(started=NOW),)})

    for world, is_told in ((left, True), (leaving, False)):
        told = with_status(world, reconcile(world, NOW + timedelta(seconds=600)))
        plan = reconcile(told, NOW + timedelta(seconds=600))
        said = message(plan) if plan.status else message_of(told)
        assert told.raw_status["state"] == end
        assert (f"To end it: kubectl delete pod {POD}." in said) is is_told
    (record,) = attempts(reconcile(replace(left, spec=SPEC), NOW))
    assert record["message"] == "Job tickets-12345678-a1 was deleted before its work was done."


def message_of(world: World) -> str:
    return next(str(c["message"]) for c in world.raw_status["conditions"] if c["type"] == "Ready")


@pytest.mark.parametrize("number", [1, 2])
def test_an_attempt_that_no_status_has_is_waited_for_and_counted_also_if_its_job_is_gone(number: int) -> None:
    """The operator stopped after it had created the Job, and somebody has deleted the Job meanwhile."""
    world = validated()
    if number == 2:
        failed = validated(attempts={1: attempt(pod("Failed", exit_code=137), failed=True)})
        world = replace(with_status(world, reconcile(failed, NOW)), attempts={})
    world = replace(world, remains={number: (pod(started=NOW),)})

    stops = reconcile(world, NOW + timedelta(hours=1))
    world = with_status(world, stops)
    waits = reconcile(world, NOW + timedelta(hours=1))
    again = reconcile(replace(world, remains={}), NOW + timedelta(hours=2))

    assert (kinds(stops), kinds(waits)) == ([], [])
    assert [record["number"] for record in attempts(stops)] == list(range(1, number + 1))
    assert again.create[-1]["metadata"]["name"] == f"tickets-12345678-a{number + 1}"
    assert attempts(again)[number - 1]["gpuSeconds"] == 7200
