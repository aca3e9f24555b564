"""The records of attempts: what each one used, how far it came, and that its words are its own."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import PodCondition
from finetune_operator.observed.world import Progress
from tests.unit.finetune_operator.decisions.attempts.recorded import HOUR, attempts, interrupted, second
from tests.unit.finetune_operator.plans import kinds
from tests.unit.finetune_operator.worlds import (
    NOW,
    attempt,
    pod,
    run,
    saying,
    validated,
    with_status,
)


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


@pytest.mark.parametrize("edited", ["free", "", "NaN", "Infinity"])
def test_an_amount_that_a_person_has_edited_stops_no_job(edited: str) -> None:
    world = interrupted()
    (record,) = world.raw_status["attempts"]
    raw = {**world.raw_status, "cost": edited, "attempts": [{**record, "cost": edited, "pricePerHour": edited}]}
    world = replace(world, raw_status=raw, status=FineTuneJobStatus.model_validate(raw))

    assert kinds(reconcile(world, NOW)) == ["Job"]


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


@pytest.mark.parametrize(
    ("before", "after", "checkpoint", "progressed"),
    [(None, None, None, False), (None, 1, None, True), (3, 3, None, False), (3, 4, None, True), (3, 4, 7, True)],
)
@pytest.mark.parametrize("says", ["the status", "the termination message"])
def test_an_attempt_progressed_if_it_stored_a_result_that_no_earlier_one_had_stored(
    before: int | None, after: int | None, checkpoint: int | None, progressed: bool, says: str
) -> None:
    """With a checkpoint: the second attempt measures the base model again, because the storage has lost the results."""
    said = TerminationMessage(
        reason=FailureReason.PREEMPTED, message="M.", kept_results=before, checkpoint_step=checkpoint
    )
    world = interrupted(termination=said)
    world = with_status(world, reconcile(world, NOW))
    in_message = TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", kept_results=after)
    stopped = pod(
        "Failed",
        name="p2",
        exit_code=33,
        finished=NOW,
        termination=in_message if says == "the termination message" else None,
    )
    both = {**world.attempts, 2: second(stopped, failed=True)}
    progress = Progress(2, kept_results=after) if says == "the status" else Progress()

    record = attempts(reconcile(replace(world, attempts=both, progress=progress), NOW))[1]

    assert (record["progressed"], record.get("keptResults")) == (progressed, after)


def test_interruptions_in_a_long_evaluation_do_not_end_the_job_while_each_attempt_stores_a_result() -> None:
    """Each of more attempts than maxRetries is interrupted before the first step, and has answered more rows."""
    world = interrupted(termination=TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", kept_results=1))
    for number in range(2, 9):
        plan = reconcile(world, NOW)
        assert kinds(plan) == ["Job"], plan.status
        world = with_status(world, plan)
        stopped = pod("Failed", name=f"p{number}", exit_code=33, finished=NOW)
        ended = run(f"tickets-12345678-a{number}", stopped, failed=True)
        progress = Progress(number, kept_results=number)
        world = replace(world, attempts={**world.attempts, number: ended}, progress=progress)
        world = with_status(world, reconcile(world, NOW))


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


def test_an_attempt_whose_record_is_gone_gives_its_number_to_no_other() -> None:
    """The trainer of a lower number would take the checkpoints for those of a later attempt, and end itself."""
    raw = {"counts": {"attempts": 3}}

    plan = reconcile(validated(raw_status=raw, status=FineTuneJobStatus.model_validate(raw)), NOW)

    assert [body["metadata"]["name"] for body in plan.create] == ["tickets-12345678-a4"]
    assert plan.status is not None
    assert plan.status["counts"] == {"attempts": 4}
