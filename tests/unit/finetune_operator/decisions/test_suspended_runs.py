"""A Job that Kueue or a person suspends waits. It is resumed with another pod."""

from datetime import timedelta

import pytest

from finetune_api.status.job import ConditionType
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.causes.workloads import Hold
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.worlds import HELD, NOW, attempt, fresh, pod, preflight, published, saying, validated


def test_a_suspended_attempt_is_queued_and_neither_ended_nor_counted_again() -> None:
    thrown_away = pod("Failed", exit_code=33, due=NOW + timedelta(seconds=60))

    plan = reconcile(validated(attempts={1: attempt(thrown_away, **HELD)}), NOW)

    assert (state(plan), reason(plan), plan.create, plan.delete_jobs) == ("Queued", "Suspended", [], [])
    assert message(plan).endswith("and waits for admission by its queue gpus. The job requests GPU type h100.")
    assert plan.status is not None
    assert plan.status["counts"] == {"attempts": 1}
    assert "reason" not in plan.status["attempts"][0]


@pytest.mark.parametrize("step", ["preflight", "attempt"])
def test_a_job_that_kueue_holds_back_is_queued_with_kueues_words_and_looked_at_again(step: str) -> None:
    held = {**HELD, "hold": Hold("WaitingForQuota", "Waiting for quota in queue gpus: no room.")}
    world = fresh(preflight=preflight(**held)) if step == "preflight" else validated(attempts={1: attempt(**held)})

    plan = reconcile(world, NOW)

    assert (state(plan), reason(plan)) == ("Queued", "WaitingForQuota")
    wanted = " The job requests GPU type h100." if step == "attempt" else ""
    assert message(plan) == f"Waiting for quota in queue gpus: no room.{wanted}"
    assert plan.requeue_after is not None
    assert (plan.delete_jobs, plan.events) == ([], [])


def test_a_resumed_attempt_has_done_nothing_of_what_the_first_pod_had() -> None:
    world = validated(attempts={1: attempt(pod(started=NOW), begun=NOW)})
    for type in (ConditionType.TRAINED, ConditionType.EVALUATED):
        world = saying(world, type, since=NOW - timedelta(minutes=1))

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert plan.status["stage"] == "Training"


def test_a_suspended_preflight_is_queued_and_says_what_for() -> None:
    plan = reconcile(fresh(preflight=preflight(suspended=True, queue="cpu")), NOW)

    assert plan.status is not None
    assert (state(plan), reason(plan), plan.status["stage"]) == ("Queued", "Suspended", "Preflight")
    assert "admission by its queue cpu" in message(plan)


def test_a_suspended_attempt_whose_results_are_published_is_over_and_does_not_come_back() -> None:
    plan = reconcile(published(attempts={1: attempt(**HELD)}), NOW)

    assert (state(plan), plan.delete_jobs) == ("Complete", ["tickets-12345678-a1"])


def test_what_the_pod_before_the_suspension_said_is_not_the_resumed_ones_word() -> None:
    resumed = attempt(failed=True, begun=NOW + timedelta(minutes=1))
    world = saying(
        validated(attempts={1: resumed}), ConditionType.TRAINED, "False", "Preempted", "It was told to stop."
    )

    plan = reconcile(world, NOW + timedelta(minutes=2))

    assert plan.status is not None
    assert plan.status["attempts"][0]["reason"] == "Evicted"
