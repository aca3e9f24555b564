"""The records of attempts: what each one used, how far it came, and that its words are its own."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.pods import Pod, PodCondition
from finetune_operator.observed.runs import LOST_GRACE
from finetune_operator.observed.world import Progress, Run, World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    NOW,
    PROFILE,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    run,
    saying,
    validated,
    with_status,
)

HOUR = timedelta(hours=1)
GPU = PROFILE.gpu_types[0]


def priced(price: str) -> Any:
    return PROFILE.model_copy(update={"gpu_types": [GPU.model_copy(update={"price_per_hour": price})]})


def second(pod: Pod | None = None, **fields: Any) -> Run:
    return run("tickets-12345678-a2", pod, **fields)


def attempts(plan: Plan) -> list[dict[str, Any]]:
    assert plan.status is not None
    return list(plan.status["attempts"])


def interrupted(**fields: Any) -> World:
    """The first attempt ran for an hour and was preempted, which is on record. The GPU cost 2.50 when it began."""
    begun = validated(profile=priced("2.50"))
    begun = with_status(begun, reconcile(begun, NOW - HOUR))
    ended = pod("Failed", exit_code=33, started=NOW - HOUR, finished=NOW, **fields)
    world = replace(begun, attempts={1: attempt(ended, failed=True)}, profile=priced("9"))
    return with_status(world, reconcile(world, NOW))


def test_an_attempt_costs_what_its_gpu_cost_when_it_began() -> None:
    (record,) = attempts(Plan(status=interrupted().raw_status))

    assert (record["gpuSeconds"], record["pricePerHour"], record["cost"]) == (3600, "2.50", "2.5000")


def test_a_node_whose_clock_is_ahead_delays_no_attempt_and_makes_none_dearer() -> None:
    begun = validated()
    begun = with_status(begun, reconcile(begun, NOW - HOUR))
    placed = {"PodScheduled": PodCondition("True", "", "", NOW - HOUR)}
    ended = pod("Failed", exit_code=33, started=NOW, finished=NOW + HOUR, conditions=placed)
    world = replace(begun, attempts={1: attempt(ended, failed=True)})

    plan = reconcile(world, NOW)

    (record,) = attempts(plan)
    assert (record["completionTime"], record["gpuSeconds"]) == ("2026-01-02T03:04:05Z", 3600)
    assert kinds(reconcile(with_status(world, plan), NOW)) == ["Job"]


def test_the_totals_are_those_of_all_attempts() -> None:
    world = interrupted()
    world = with_status(world, reconcile(world, NOW))
    done = second(pod("Succeeded", name="p2", exit_code=0, started=NOW, finished=NOW + HOUR), succeeded=True)

    plan = reconcile(replace(world, attempts={**world.attempts, 2: done}), NOW + HOUR)

    assert plan.status is not None
    assert (plan.status["gpuSeconds"], plan.status["cost"]) == (7200, "11.5000")


def test_a_pod_that_is_never_seen_again_is_paid_until_its_loss_is_noticed() -> None:
    running = with_status(validated(), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))

    plan = reconcile(running, NOW + timedelta(seconds=90))

    (record,) = attempts(plan)
    assert (record["reason"], record["gpuSeconds"]) == ("Evicted", 90)


def test_each_pod_of_an_attempt_that_a_queue_resumed_is_on_record_and_paid() -> None:
    first = pod("Failed", name="p1", exit_code=33, started=NOW, finished=NOW + timedelta(minutes=1))
    again = pod("Running", name="p2", created=NOW + timedelta(minutes=5), started=NOW + timedelta(minutes=5))
    resumed = attempt(begun=NOW + timedelta(minutes=5)).with_pods([replace(first, due=NOW), again])

    (record,) = attempts(reconcile(validated(attempts={1: resumed}), NOW + timedelta(minutes=6)))

    assert [(p["name"], "completionTime" in p) for p in record["pods"]] == [("p1", True), ("p2", False)]
    assert (record["gpuSeconds"], "completionTime" in record) == (60, False)


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
    assert message(Plan(status=world.raw_status)).endswith("Attempt 2 starts when pod p1 has ended.")


def with_reason(plan: Plan, world: World) -> Plan:
    return plan if plan.status is not None else Plan(status=world.raw_status)


@pytest.mark.parametrize("skew", [timedelta(0), HOUR, -HOUR])
def test_what_the_second_attempt_shows_is_its_own(skew: timedelta) -> None:
    world = saying(interrupted(), ConditionType.TRAINED, since=NOW + skew)
    world = with_status(world, reconcile(world, NOW))
    both = {**world.attempts, 2: second(pod(name="p2"))}

    first_spoke = reconcile(replace(world, attempts=both, authors={"Trained": 1}), NOW)
    second_spoke = reconcile(replace(world, attempts=both, authors={"Trained": 2}), NOW)

    assert first_spoke.status is not None
    assert second_spoke.status is not None
    assert (first_spoke.status["stage"], second_spoke.status["stage"]) == ("Training", "Evaluating")


@pytest.mark.parametrize(
    ("before", "after", "progressed"), [(None, None, False), (None, 7, True), (7, 7, False), (7, 8, True)]
)
def test_an_attempt_progressed_if_its_checkpoint_is_later_than_all_before(
    before: int | None, after: int | None, progressed: bool
) -> None:
    world = interrupted(
        termination=TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", checkpoint_step=before)
    )
    world = with_status(world, reconcile(world, NOW))
    stopped = pod("Failed", name="p2", exit_code=33, finished=NOW)
    both = {**world.attempts, 2: second(stopped, failed=True)}

    plan = reconcile(replace(world, attempts=both, progress=Progress(2, after, before, after)), NOW)

    record = attempts(plan)[1]
    assert record["progressed"] is progressed
    assert (record.get("resumedFromStep"), record.get("checkpointStep")) == (before, after)


def test_a_running_attempt_is_looked_at_when_its_budget_ends() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(budget=Budget(gpu_hours=0.5))})
    world = validated(spec=spec, attempts={1: attempt(pod(started=NOW))})

    assert reconcile(world, NOW).requeue_after == timedelta(seconds=1801)
    assert state(reconcile(world, NOW + timedelta(seconds=1801))) == "Suspended"


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


@pytest.mark.parametrize(
    ("said", "minutes", "ends"),
    [
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", 9, False),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", 10, True),
        ("0/2 nodes are available: 1 node(s) didn't match, 1 Insufficient nvidia.com/gpu.", 10, True),
        (
            "0/2 nodes: 1 node(s) didn't match, 1 Insufficient gpu. preemption: 1 No preemption victims found",
            600,
            False,
        ),
        ("0/2 nodes are available: 1 node(s) didn't match, 1 node(s) were unschedulable.", 600, False),
    ],
)
def test_a_job_whose_only_node_has_a_broken_gpu_does_not_wait_for_ever(said: str, minutes: int, ends: bool) -> None:
    broken = pod("Failed", exit_code=31, finished=NOW)
    world = validated(attempts={1: attempt(broken, failed=True)})
    world = with_status(world, reconcile(world, NOW))
    world = with_status(world, reconcile(world, NOW))
    waits = pod("Pending", name="p2", conditions={"PodScheduled": PodCondition("False", "Unschedulable", said, NOW)})
    both = {**world.attempts, 2: second(waits)}

    plan = reconcile(replace(world, attempts=both), NOW + timedelta(minutes=minutes))

    assert (state(plan), reason(plan)) == (("Failed", "GPUFault") if ends else ("Queued", "WaitingForGPU"))
    assert plan.delete_jobs == (["tickets-12345678-a2"] if ends else [])


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


def test_jobs_of_attempts_that_are_no_longer_on_record_go_and_count_no_more() -> None:
    done = pod("Failed", exit_code=33, finished=NOW)
    old = {n: {"number": n, "name": f"a{n}", "reason": "Preempted", "progressed": True} for n in range(1, 12)}
    runs = {n: run(f"tickets-12345678-a{n}", done, failed=True) for n in range(1, 12)}
    raw = {"counts": {"attempts": 11, "interruptions": 11, "reasons": {"Preempted": 11}}}
    raw["attempts"] = [{**old[n], "completionTime": NOW.isoformat()} for n in range(2, 12)]
    world = validated(raw_status=raw, status=FineTuneJobStatus.model_validate(raw), attempts=runs)

    plan = reconcile(world, NOW)

    assert [body["metadata"]["name"] for body in plan.create] == ["tickets-12345678-a12"]
    assert plan.delete_jobs == ["tickets-12345678-a1", "tickets-12345678-a2"]
    assert plan.status is not None
    assert plan.status["counts"] == {"attempts": 12, "interruptions": 11, "reasons": {"Preempted": 11}}


def test_a_job_that_ends_while_a_pod_still_stops_pays_for_it_until_then() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(max_interruptions=0)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=120))

    plan = reconcile(replace(running, remains={1: (leaving,)}), NOW + timedelta(seconds=30))

    assert (state(plan), attempts(plan)[0]["gpuSeconds"]) == ("Failed", 30)


def test_suspending_a_job_ends_its_preflight() -> None:
    spec = SPEC.model_copy(update={"suspend": True})

    plan = reconcile(fresh(spec=spec, preflight=preflight(pod())), NOW)

    assert (state(plan), plan.delete_jobs, plan.create) == ("Suspended", ["tickets-12345678-preflight"], [])


def test_a_pause_is_counted_from_the_end_also_of_an_attempt_whose_pod_never_ran() -> None:
    deleted = with_status(validated(), reconcile(validated(), NOW))
    first = with_status(deleted, reconcile(deleted, NOW))
    again = with_status(first, reconcile(first, NOW))
    second_end = with_status(again, reconcile(again, NOW))

    assert kinds(reconcile(second_end, NOW + timedelta(seconds=19))) == []
    assert kinds(reconcile(second_end, NOW + timedelta(seconds=20))) == ["Job"]
