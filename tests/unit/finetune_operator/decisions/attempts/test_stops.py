"""Attempts that the operator stops, and pods that it waits for before the next attempt."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import AGAIN, FAILURES, FailureReason
from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.lost import LOST_GRACE
from finetune_operator.observed.facts.pods import PodCondition
from finetune_operator.observed.world import Progress, World
from tests.unit.finetune_operator.decisions.attempts.recorded import HOUR, attempts, interrupted, priced, second
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    HELD,
    NOW,
    PLACED,
    PROFILE,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    published,
    run,
    validated,
    with_status,
)


def test_a_pod_on_a_lost_node_is_waited_for_only_for_its_grace() -> None:
    due = NOW + timedelta(seconds=120)
    lost = pod("Running", due=due, conditions={"DisruptionTarget": PodCondition("True", "DeletionByTaintManager", "")})
    world = validated(attempts={1: attempt(lost)})

    assert kinds(reconcile(world, due)) == []
    at = due + LOST_GRACE
    ended = reconcile(world, at)
    assert (attempts(ended)[0]["reason"], ended.delete_jobs) == ("NodeLost", ["tickets-12345678-a1"])
    gone = with_status(replace(world, attempts={}, remains={1: (lost,)}), ended)
    (job,) = reconcile(gone, at).create
    assert job["metadata"]["name"] == "tickets-12345678-a2"


def test_the_next_attempt_waits_for_the_pod_of_a_deleted_job() -> None:
    leaving = pod("Running", due=NOW + timedelta(seconds=120))
    running = with_status(validated(), reconcile(validated(attempts={1: attempt(pod())}), NOW))
    world = replace(running, remains={1: (leaving,)})
    world = with_status(world, reconcile(world, NOW))

    plan = reconcile(world, NOW + timedelta(seconds=1))

    assert (kinds(plan), reason(with_reason(plan, world))) == ([], "Retrying")
    ended = replace(leaving, phase="Failed", exit_code=33, finished=NOW + timedelta(seconds=9))
    assert kinds(reconcile(replace(world, remains={1: (ended,)}), NOW + timedelta(seconds=10))) == ["Job"]


def test_the_next_attempt_begins_after_the_job_of_the_stopped_one_is_deleted() -> None:
    """The operator may stop after it has recorded the end, and before it has deleted the Job."""
    suspended = validated(spec=SPEC.model_copy(update={"suspend": True}), attempts={1: attempt(**HELD)})
    resumed = replace(with_status(suspended, reconcile(suspended, NOW)), spec=SPEC)

    plan = reconcile(resumed, NOW)

    assert (plan.create, plan.delete_jobs, plan.requeue_after) == ([], ["tickets-12345678-a1"], timedelta(0))
    assert kinds(reconcile(replace(resumed, attempts={}), NOW)) == ["Job"]


def test_a_job_that_waits_for_a_stopping_pod_is_not_written_at_each_look() -> None:
    world = interrupted()
    world = with_status(world, reconcile(world, NOW))
    leaving = pod("Running", name="p2", due=NOW + timedelta(seconds=120))
    deleted = replace(world, attempts={1: world.attempts[1]}, remains={2: (leaving,)})
    first = reconcile(deleted, NOW)
    assert message(first).endswith("Attempt 3 starts when pod p2 has ended.")
    deleted = with_status(deleted, first)
    assert [record.get("reason") for record in attempts(Plan(status=deleted.raw_status))] == ["Preempted", "Evicted"]

    plan = reconcile(deleted, NOW + timedelta(seconds=5))

    assert (plan.status, plan.create) == (None, [])
    over = replace(leaving, phase="Failed", exit_code=33, finished=NOW + timedelta(seconds=9))
    plan = reconcile(replace(deleted, remains={2: (over,)}), NOW + timedelta(seconds=9))
    assert "at 03:04:34 UTC" in message(plan)


def test_a_pod_that_has_lost_its_job_and_waits_for_a_node_is_named() -> None:
    left = pod("Pending", name="p1", conditions={"PodScheduled": PodCondition("False", "Unschedulable", "")})
    world = with_status(validated(), reconcile(validated(attempts={1: attempt(left)}), NOW))
    world = replace(world, remains={1: (left,)})
    world = with_status(world, reconcile(world, NOW))

    plan = reconcile(world, NOW + HOUR)

    assert (plan.status, plan.create) == (None, [])
    assert message(Plan(status=world.raw_status)).endswith(
        "Attempt 2 starts when pod p1 has ended. To end it: kubectl delete pod p1."
    )


def with_reason(plan: Plan, world: World) -> Plan:
    return plan if plan.status is not None else Plan(status=world.raw_status)


def test_a_running_attempt_is_looked_at_when_its_budget_ends() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(budget=Budget(gpu_hours=0.5))})
    world = validated(spec=spec, attempts={1: attempt(pod(started=NOW))})

    assert reconcile(world, NOW).requeue_after == timedelta(seconds=1801)
    assert state(reconcile(world, NOW + timedelta(seconds=1801))) == "Suspended"


def test_every_gpu_of_a_pod_counts_for_the_budget_and_the_cost() -> None:
    compute = SPEC.compute.model_copy(update={"gpus_per_node": 4})
    budget = RunPolicy(budget=Budget(gpu_hours=4, cost="100"))
    spec = SPEC.model_copy(update={"compute": compute, "run_policy": budget})
    begun = validated(spec=spec, profile=priced("3"))
    running = replace(with_status(begun, reconcile(begun, NOW)), attempts={1: attempt(pod(started=NOW))})
    assert reconcile(running, NOW).requeue_after == timedelta(seconds=3601)
    assert state(reconcile(running, NOW + timedelta(seconds=3601))) == "Suspended"

    ended = pod("Failed", exit_code=29, started=NOW, finished=NOW + timedelta(minutes=30))
    plan = reconcile(replace(running, attempts={1: attempt(ended, failed=True)}), NOW + timedelta(minutes=30))
    assert plan.status is not None
    assert (plan.status["gpuSeconds"], plan.status["cost"], attempts(plan)[0]["gpus"]) == (7200, "6.0000", 4)


def test_a_stop_by_the_operator_overrules_what_the_stopped_pod_said() -> None:
    spec = SPEC.model_copy(update={"suspend": True})
    stopped = pod("Failed", exit_code=33, finished=NOW)

    plan = reconcile(validated(spec=spec, attempts={1: attempt(stopped, failed=True)}), NOW)

    assert plan.status is not None
    assert (attempts(plan)[0]["reason"], plan.status["counts"]) == (
        "Suspended",
        {"attempts": 1, "reasons": {"Suspended": 1}},
    )


def test_a_deadline_ends_a_job_also_during_the_pause_before_a_retry() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=64)})
    failed = pod("Failed", exit_code=26, started=NOW - timedelta(seconds=60), finished=NOW)
    world = validated(spec=spec, attempts={1: attempt(failed, failed=True)})
    world = with_status(world, reconcile(world, NOW))

    assert reconcile(world, NOW).requeue_after == timedelta(seconds=4)
    assert reason(reconcile(world, NOW + timedelta(seconds=4))) == "DeadlineExceeded"


def test_an_attempt_that_is_stopped_before_it_has_a_pod_has_an_end() -> None:
    spec = SPEC.model_copy(update={"suspend": True})

    (record,) = attempts(reconcile(validated(spec=spec, attempts={1: attempt()}), NOW))

    assert (record["reason"], record["completionTime"]) == ("Suspended", "2026-01-02T03:04:05Z")


def test_a_failure_of_its_own_ends_a_job_also_while_it_is_suspended() -> None:
    spec = SPEC.model_copy(update={"suspend": True})
    failed = pod("Failed", exit_code=29, finished=NOW)

    assert reason(reconcile(validated(spec=spec, attempts={1: attempt(failed, failed=True)}), NOW)) == "LossDiverged"


def test_the_nodes_that_an_attempt_avoids_are_known_also_if_the_operator_stopped_before_it_recorded_the_attempt() -> (
    None
):
    broken = pod("Failed", exit_code=31, finished=NOW)
    world = validated(attempts={1: attempt(broken, failed=True)})
    world = with_status(world, reconcile(world, NOW))
    assert kinds(reconcile(world, NOW)) == ["Job"]  # created, and never written in the status
    also_broken = pod("Failed", name="p2", node_name="n2", exit_code=31, finished=NOW)
    world = replace(world, attempts={**world.attempts, 2: second(also_broken, failed=True)})

    recorded = with_status(world, reconcile(world, NOW))
    (third,) = reconcile(recorded, NOW).create

    assert attempts(Plan(status=recorded.raw_status))[1]["avoidedNodes"] == ["n1"]
    (term,) = third["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert [field["values"] for field in term["matchFields"]] == [["n1"], ["n2"]]


def test_a_pod_that_is_stopped_before_it_started_is_paid_and_uses_up_the_budget() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(budget=Budget(gpu_hours=0.0001))})
    placed = {"PodScheduled": PodCondition("True", "", "", NOW - timedelta(seconds=9))}
    pulls = pod("Pending", conditions=placed, waiting_reason="ContainerCreating")
    world = validated(spec=spec, attempts={1: attempt(pulls)})
    stopped = reconcile(world, NOW)
    assert stopped.delete_jobs == ["tickets-12345678-a1"]

    gone = replace(with_status(world, stopped), attempts={})
    plan = reconcile(gone, NOW)

    assert (state(plan), attempts(plan)[0]["gpuSeconds"], kinds(plan)) == ("Suspended", 9, [])
    gone = with_status(gone, plan)
    assert reconcile(gone, NOW + HOUR) == Plan()


def test_a_limit_of_money_waits_for_a_price() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(budget=Budget(cost="5"))})

    assert (reason(reconcile(validated(spec=spec), NOW)), kinds(reconcile(validated(spec=spec), NOW))) == (
        "WaitingForDependency",
        [],
    )
    assert kinds(reconcile(validated(spec=spec, profile=priced("1")), NOW)) == ["Job"]


def limited_later(cost: str, profile: Any, *runs: Run) -> World:
    """A job whose last attempt runs since NOW and began without a price, and that then got a limit on its cost."""
    begun = with_status(validated(), reconcile(validated(), NOW))
    for number, each in enumerate(runs, start=1):
        begun = replace(begun, attempts={**begun.attempts, number: each})
        begun = with_status(begun, reconcile(begun, NOW))
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(budget=Budget(cost=cost))})
    return replace(begun, spec=spec, profile=profile)


def test_a_limit_of_money_counts_the_running_attempt_from_before_it_at_the_present_price() -> None:
    world = limited_later("5", priced("10"), attempt(pod(started=NOW)))
    plan = reconcile(world, NOW)
    assert (attempts(plan)[0]["pricePerHour"], plan.requeue_after) == ("10", timedelta(seconds=1801))

    over = reconcile(world, NOW + timedelta(seconds=1801))
    assert (state(over), attempts(over)[0]["reason"]) == ("Suspended", "BudgetExceeded")
    gone = replace(with_status(world, over), attempts={}, profile=priced("20"))
    ended = reconcile(gone, NOW + timedelta(seconds=1801))
    assert attempts(ended)[0]["cost"] == "5.0028"


def test_a_limit_of_money_counts_earlier_attempts_from_before_it() -> None:
    ended = attempt(pod("Failed", exit_code=33, started=NOW - HOUR, finished=NOW), failed=True)
    world = limited_later("15", priced("10"), ended, second(pod(started=NOW)))

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert ([each.get("cost") for each in attempts(plan)], plan.status["cost"]) == (["10.0000", None], "10.0000")
    assert state(reconcile(world, NOW + timedelta(minutes=31))) == "Suspended"


def test_a_limit_of_money_without_any_price_stops_the_attempt_and_waits_for_a_price() -> None:
    world = limited_later("5", PROFILE, attempt(pod(started=NOW)))
    plan = reconcile(world, NOW)
    assert (attempts(plan)[0]["reason"], plan.delete_jobs) == ("CostUnknown", ["tickets-12345678-a1"])
    said = "spec.runPolicy.budget.cost: GPU type h100 of FineTuneProfile default has no pricePerHour"
    assert said in message(plan)
    assert state(plan) == "Pending", "nobody has to resume it, so its deadline counts"

    gone = replace(with_status(world, plan), attempts={})
    waits = reconcile(gone, NOW)
    assert (reason(waits), kinds(waits)) == ("WaitingForDependency", [])
    assert kinds(reconcile(replace(gone, profile=priced("1")), NOW)) == ["Job"]


def test_a_limit_of_money_without_any_price_waits_until_the_deadline() -> None:
    world = limited_later("5", PROFILE, attempt(pod(started=NOW)))
    policy = RunPolicy(budget=Budget(cost="5"), active_deadline_seconds=7200)
    world = replace(world, spec=SPEC.model_copy(update={"run_policy": policy}))
    waiting = replace(with_status(world, reconcile(world, NOW)), attempts={})

    early, late = reconcile(waiting, NOW), reconcile(waiting, NOW + 2 * HOUR)

    assert (state(early), reason(late)) == ("Pending", "DeadlineExceeded")


def test_a_node_whose_clock_is_hours_behind_has_not_been_silent() -> None:
    behind = 7 * HOUR
    slow = pod(started=NOW - behind, behind=behind)
    world = validated(attempts={1: attempt(slow)}, progress=Progress(1, observed=NOW + 5 * HOUR - behind))

    for hours in (0, 5, 10):
        assert "reason" not in attempts(reconcile(world, NOW + hours * HOUR))[0]
    assert attempts(reconcile(world, NOW + 11 * HOUR))[0]["reason"] == "TrainingStalled"


@pytest.mark.parametrize(("hours", "wrote", "reasons"), [(5, None, None), (6, None, 1), (11, 5, 1), (11, 6, None)])
def test_a_pod_that_gives_no_sign_of_life_for_hours_is_replaced(
    hours: int, wrote: int | None, reasons: int | None
) -> None:
    seen = NOW + wrote * HOUR if wrote is not None else None
    world = validated(attempts={1: attempt(pod(started=NOW))}, progress=Progress(1 if wrote else 0, observed=seen))

    plan = reconcile(world, NOW + hours * HOUR)

    assert attempts(plan)[0].get("reason") == ("TrainingStalled" if reasons else None)
    assert plan.delete_jobs == (["tickets-12345678-a1"] if reasons else [])
    assert plan.status is not None
    assert plan.status["counts"].get("reasons", {}).get("TrainingStalled") == reasons


def test_what_helps_against_a_silent_pod_reads_no_log_and_a_job_that_goes_on_is_not_created_again() -> None:
    """The log is deleted with the pod."""
    world = validated(attempts={1: attempt(pod(started=NOW))})
    finding = "The training pod has run for 6 hours without writing its progress in the status."

    stopping = reconcile(world, NOW + 6 * HOUR)
    again = reconcile(replace(with_status(world, stopping), attempts={}), NOW + 6 * HOUR)
    once = SPEC.model_copy(update={"run_policy": RunPolicy(max_retries=0)})
    failed = reconcile(replace(with_status(world, stopping), attempts={}, spec=once), NOW + 6 * HOUR)

    assert message(stopping) == finding
    assert (reason(again), AGAIN in message(again)) == ("Retrying", False)
    assert f"ended with TrainingStalled: {finding} {remedies.SILENT_ATTEMPT} Attempt 2 starts at " in message(again)
    assert (state(failed), reason(failed)) == ("Failed", "TrainingStalled")
    assert message(failed).startswith(f"{finding} {remedies.SILENT_ATTEMPT} {AGAIN}")
    assert FAILURES[FailureReason.TRAINING_STALLED].remedy not in message(failed)


def test_an_attempt_whose_steps_may_take_hours_is_silent_for_longer() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(stall_timeout_seconds=4 * 3600)})
    world = validated(spec=spec, attempts={1: attempt(pod(started=NOW))})

    assert reconcile(world, NOW + 11 * HOUR).delete_jobs == []
    assert "has run for 12 hours without writing its progress" in message(reconcile(world, NOW + 12 * HOUR))


def test_a_silent_pod_of_a_job_that_this_version_cannot_read_is_not_ended() -> None:
    world = validated(spec=None, spec_error="spec.later: Unknown.", attempts={1: attempt(pod(started=NOW))})

    plan = reconcile(world, NOW + 100 * HOUR)

    assert (state(plan), plan.delete_jobs, plan.requeue_after) == ("Running", [], None)
    assert "The attempt goes on, but spec.suspend and spec.runPolicy have no effect." in message(plan)


def test_a_stopped_attempt_tells_its_last_steps_when_its_pod_ends() -> None:
    spec = SPEC.model_copy(update={"suspend": True})
    world = validated(spec=spec, attempts={1: attempt(pod())}, progress=Progress(1, 40, None, 30))
    world = with_status(world, reconcile(world, NOW))
    (before,) = attempts(Plan(status=world.raw_status))
    last = TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", step=42, checkpoint_step=42)
    ended = pod("Failed", exit_code=33, finished=NOW, termination=last, due=NOW)

    plan = reconcile(replace(world, attempts={}, remains={1: (ended,)}), NOW)

    (after,) = attempts(plan)
    assert (before["reason"], before["lastStep"], before["checkpointStep"]) == ("Suspended", 40, 30)
    assert (after["reason"], after["lastStep"], after["checkpointStep"], after["exitCode"]) == ("Suspended", 42, 42, 33)


def test_a_job_that_is_complete_while_a_pod_still_stops_pays_for_it_until_then() -> None:
    """It published after it was asked to stop."""
    suspended = validated(spec=SPEC.model_copy(update={"suspend": True}), attempts={1: attempt(pod(started=NOW))})
    records = with_status(suspended, reconcile(suspended, NOW)).status.attempts
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=120))
    world = published(spec=suspended.spec, remains={1: (leaving,)})
    world = replace(world, status=world.status.model_copy(update={"attempts": records}))

    plan = reconcile(world, NOW + timedelta(seconds=30))

    assert (state(plan), attempts(plan)[0]["gpuSeconds"]) == ("Complete", 30)


def test_suspending_a_job_ends_its_preflight() -> None:
    spec = SPEC.model_copy(update={"suspend": True})

    plan = reconcile(fresh(spec=spec, preflight=preflight(pod())), NOW)

    assert (state(plan), plan.delete_jobs, plan.create) == ("Suspended", ["tickets-12345678-preflight"], [])


@pytest.mark.parametrize(
    ("stop", "reason"),
    [({"suspend": True}, "Suspended"), ({"run_policy": RunPolicy(budget=Budget(gpu_hours=0.5))}, "BudgetExceeded")],
)
def test_a_job_that_is_stopped_for_the_same_reason_again_has_another_event(stop: dict[str, Any], reason: str) -> None:
    world, events = validated(attempts={1: attempt(pod(started=NOW, conditions=PLACED))}), list[Event]()
    for generation in (2, 4):
        stopping = replace(world, spec=SPEC.model_copy(update=stop), generation=generation)
        plan = reconcile(stopping, NOW + HOUR)
        events += plan.events
        resumed = replace(with_status(stopping, plan), attempts={}, spec=SPEC, generation=generation + 1)
        plan = reconcile(resumed, NOW + HOUR)
        number = generation // 2 + 1
        again = run(f"tickets-12345678-a{number}", pod(started=NOW, conditions=PLACED))
        world = replace(with_status(resumed, plan), attempts={number: again})

    assert [event.reason for event in events] == [reason, reason]
    assert events[0].occurrence != events[1].occurrence, "the API server would take the second for the first"


def test_a_pause_is_counted_from_the_end_also_of_an_attempt_whose_pod_never_ran() -> None:
    deleted = with_status(validated(), reconcile(validated(), NOW))
    first = with_status(deleted, reconcile(deleted, NOW))
    again = with_status(first, reconcile(first, NOW))
    second_end = with_status(again, reconcile(again, NOW))

    assert kinds(reconcile(second_end, NOW + timedelta(seconds=19))) == []
    assert kinds(reconcile(second_end, NOW + timedelta(seconds=20))) == ["Job"]
