"""A failure that no retry helps against ends the job, whatever else asks it to stop: suspend, deadline or budget."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FAILURES, RETRIED_PREFLIGHTS, FailureReason, Retry
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.decisions import admission
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import EarlierJob, World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    NOW,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    saying,
    validated,
    with_status,
)

HOUR = timedelta(hours=1)
STOPS = {
    "suspended": {"suspend": True},
    "over budget": {"run_policy": RunPolicy(budget=Budget(gpu_hours=0.0001))},
    "after its deadline": {"run_policy": RunPolicy(active_deadline_seconds=60)},
}
CODES = {reason: failure.exit_code for reason, failure in FAILURES.items() if failure.exit_code}
FINAL = [reason for reason in CODES if FAILURES[reason].retry is Retry.NEVER]
FINAL_PREFLIGHT = [reason for reason in CODES if reason not in RETRIED_PREFLIGHTS]
SAID = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)


def stopped(**fields: Any) -> FineTuneJobSpec:
    return SPEC.model_copy(update=fields)


def attempted(spec: FineTuneJobSpec, exit_code: int) -> World:
    """The only attempt has ended after an hour."""
    ended = pod("Failed", exit_code=exit_code, started=NOW - HOUR, finished=NOW)
    return validated(spec=spec, attempts={1: attempt(ended, failed=True)})


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("why", FINAL)
def test_a_final_failure_of_an_attempt_wins(why: FailureReason, stop: dict[str, Any]) -> None:
    plan = reconcile(attempted(stopped(**stop), CODES[why]), NOW)

    assert (state(plan), reason(plan)) == ("Failed", why)


@pytest.mark.parametrize("why", FINAL_PREFLIGHT)
def test_a_final_failure_of_a_preflight_wins_over_the_suspension(why: FailureReason) -> None:
    failed = preflight(pod("Failed", exit_code=CODES[why], finished=NOW), failed=True)

    plan = reconcile(fresh(spec=stopped(suspend=True), preflight=failed), NOW)

    assert (state(plan), reason(plan)) == ("Failed", why)


def test_what_a_preflight_said_wins_also_if_its_job_is_gone() -> None:
    world = saying(
        fresh(spec=stopped(suspend=True)), ConditionType.VALIDATED, "False", "DatasetInvalid", "Row 3 has no prompt."
    )

    plan = reconcile(world, NOW)

    assert (state(plan), reason(plan)) == ("Failed", "DatasetInvalid")


@pytest.mark.parametrize("why", sorted(RETRIED_PREFLIGHTS & CODES.keys()))
def test_a_preflight_that_would_be_repeated_stays_suspended(why: FailureReason) -> None:
    failed = preflight(pod("Failed", exit_code=CODES[why], finished=NOW), failed=True)

    plan = reconcile(fresh(spec=stopped(suspend=True), preflight=failed), NOW)

    assert (state(plan), plan.create) == ("Suspended", [])


@pytest.mark.parametrize(
    ("stop", "end"),
    [("suspended", "Suspended"), ("over budget", "Suspended"), ("after its deadline", "Failed")],
)
@pytest.mark.parametrize("why", ["StorageUnavailable", "Preempted", "GPUFault"])
def test_an_attempt_that_would_be_repeated_is_not_while_the_job_must_not_run(why: str, stop: str, end: str) -> None:
    world = attempted(stopped(**STOPS[stop]), CODES[FailureReason(why)])
    for _ in range(2):  # an interrupted attempt is first put on record as stopped
        plan = reconcile(world, NOW)
        assert kinds(plan) == []
        world = world if world.status.is_over else with_status(world, plan)

    assert world.raw_status["state"] == end
    ready = world.status.condition(ConditionType.READY)
    assert ready is not None
    assert end == "Suspended" or ready.reason == "DeadlineExceeded"


def test_what_suspends_a_job_wins_over_its_deadline() -> None:
    policy = RunPolicy(active_deadline_seconds=60, budget=Budget(gpu_hours=0.0001))

    both = reconcile(attempted(stopped(suspend=True, run_policy=policy), 26), NOW)
    over = reconcile(attempted(stopped(run_policy=policy), 26), NOW)

    assert (state(both), reason(both)) == ("Suspended", "Suspended")
    assert (state(over), reason(over)) == ("Suspended", "BudgetExceeded")


@pytest.mark.parametrize("held", [{"suspend": True}, {"budget": Budget(gpu_hours=0.0001)}], ids=["by hand", "budget"])
def test_a_suspended_job_fails_at_its_deadline_only_when_it_is_resumed(held: dict[str, Any]) -> None:
    """Any event may come later: a restart of the operator, or a change of the profile."""
    suspend, budget = held.get("suspend"), held.get("budget")
    policy = RunPolicy(active_deadline_seconds=7200, budget=budget)
    world = validated(spec=stopped(suspend=suspend, run_policy=policy), attempts={1: attempt(pod(started=NOW - HOUR))})
    world = replace(with_status(world, reconcile(world, NOW)), attempts={})

    assert state(reconcile(world, NOW)) == "Suspended"
    world = with_status(world, reconcile(world, NOW))
    later = reconcile(world, NOW + 2 * HOUR)
    resumed = replace(world, spec=stopped(run_policy=RunPolicy(active_deadline_seconds=7200)))

    assert state(with_status_of(later, world)) == "Suspended"
    assert reason(reconcile(resumed, NOW + 2 * HOUR)) == "DeadlineExceeded"


def with_status_of(plan: Plan, world: World) -> Plan:
    return plan if plan.status is not None else Plan(status=world.raw_status)


@pytest.mark.parametrize("stop", ["suspended", "over budget"])
def test_a_final_failure_that_the_pod_reports_while_it_stops_ends_the_job(stop: str) -> None:
    world = validated(spec=stopped(**STOPS[stop]), attempts={1: attempt(pod(started=NOW - HOUR))})
    world = replace(with_status(world, reconcile(world, NOW)), attempts={}, authors={"Trained": 1})
    assert state(reconcile(world, NOW)) == "Suspended"

    again = saying(world, ConditionType.TRAINED, "False", "StorageUnavailable", "No answer.")
    final = saying(world, ConditionType.TRAINED, "False", "LossDiverged", "The loss of step 7 is not finite.")

    assert state(reconcile(again, NOW)) == "Suspended"
    plan = reconcile(final, NOW)
    assert (state(plan), reason(plan)) == ("Failed", "LossDiverged")
    assert message(plan).startswith("The loss of step 7 is not finite.")


def test_a_suspended_job_with_a_spec_that_can_never_run_fails() -> None:
    spec = {"model": {"uri": "s3://elsewhere/base"}, "suspend": True}

    plan = reconcile(fresh(spec=FineTuneJobSpec.model_validate(SAID | spec), profile=fresh().profile), NOW)
    itself = SAID | {"resumeFrom": {"name": "tickets"}, "suspend": True}
    same = reconcile(fresh(spec=FineTuneJobSpec.model_validate(itself)), NOW)

    assert (state(plan), reason(plan)) == ("Suspended", "Suspended"), "the profile's wildcard has the bucket"
    assert (state(same), reason(same)) == ("Failed", "SpecInvalid")


@pytest.mark.parametrize(
    "parts",
    [{"profile": None}, {"earlier_job": None}, {"earlier_job": EarlierJob("u", "s3://results/e", "Running")}],
    ids=["no profile", "no earlier job", "the earlier job runs"],
)
def test_a_suspended_job_may_be_created_before_the_objects_that_it_names(parts: dict[str, Any]) -> None:
    spec = FineTuneJobSpec.model_validate(SAID | {"resumeFrom": {"name": "first"}, "suspend": True})
    world = fresh(spec=spec, **parts)

    plan = reconcile(world, world.created + 10 * admission.GRACE)

    assert (state(plan), plan.create) == ("Suspended", [])
