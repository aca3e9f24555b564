"""What a tenant is told about a Job that Kueue holds back. The messages are those of Kueue 0.17."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.observed.causes.workloads import LOOK_AGAIN, LOOK_AGAIN_AT_LAST, Hold, hold_of, next_look
from finetune_operator.observed.facts.pods import Object
from tests.unit.finetune_operator.worlds import NOW

NO_ROOM = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor any, 1 more needed"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"


def condition(type: str, status: str, reason: str = "Pending", message: str = "") -> Object:
    return {"type": type, "status": status, "reason": reason, "message": message}


def workload(*conditions: Object, active: bool | None = True, **status: Any) -> Object:
    spec = {} if active is None else {"active": active}
    return {"metadata": {"name": "job-a-1"}, "spec": spec, "status": {"conditions": list(conditions), **status}}


def test_a_workload_without_quota_speaks_for_itself() -> None:
    held = hold_of(workload(condition("QuotaReserved", "False", message=NO_ROOM)), "gpus")

    assert held == Hold("WaitingForQuota", f"Waiting for quota in queue gpus: {NO_ROOM}.")


@pytest.mark.parametrize("new", [workload(), {"metadata": {"name": "job-a-1"}}, workload(active=None)])
def test_a_workload_that_kueue_has_not_looked_at_waits_for_quota(new: Object) -> None:
    assert hold_of(new, "gpus") == Hold("WaitingForQuota", "Waiting for quota in queue gpus.")


@pytest.mark.parametrize("found", ["LocalQueue gpus doesn't exist", "ClusterQueue team is inactive"])
def test_a_queue_that_takes_nobody_is_named_with_what_to_do(found: str) -> None:
    held = hold_of(workload(condition("QuotaReserved", "False", "Inadmissible", found)), "gpus")

    assert held.message.startswith(f"Waiting for quota in queue gpus: {found}. Create the queue")
    assert "kubectl get localqueues" in held.message


@pytest.mark.parametrize(
    ("reason", "said", "told"),
    [
        (
            "Pending",
            "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in flavor any, previously "
            "considered podsets requests (0) + current podset request (8) > maximum capacity (4)",
            "Waiting does not help: ask the platform team for more quota, or request less: ",
        ),
        (
            "Inadmissible",
            "Workload namespace doesn't match ClusterQueue selector",
            "Ask the platform team to admit this",
        ),
    ],
)
def test_quota_that_never_comes_is_told_with_what_helps(reason: str, said: str, told: str) -> None:
    held = hold_of(workload(condition("QuotaReserved", "False", reason, said)), "gpus")

    assert held.message.startswith(f"Waiting for quota in queue gpus: {said}. {told}")


def test_quota_that_one_flavor_never_has_and_another_one_has_later_is_waited_for() -> None:
    said = f"insufficient quota for nvidia.com/gpu in flavor spot, request (8) > maximum capacity (4), {NO_ROOM}"

    held = hold_of(workload(condition("QuotaReserved", "False", message=said)), "gpus")

    assert held == Hold("WaitingForQuota", f"Waiting for quota in queue gpus: {said}.")


def test_a_job_that_kueue_could_not_start_is_not_called_admitted() -> None:
    finished = condition("Finished", "True", "FailedToStart", "conflict for nodeSelector")

    held = hold_of(workload(condition("Admitted", "True"), finished), "gpus")

    assert held == Hold(
        "NotStarted",
        "Kueue could not start the Job and does not try again, with reason FailedToStart: conflict for nodeSelector. "
        "Correct that cause, then delete Workload job-a-1.",
    )


def test_an_evicted_job_is_told_why_it_was_stopped_and_what_it_waits_for() -> None:
    evicted = condition("Evicted", "True", "Preempted", PREEMPTED)
    held = hold_of(workload(condition("QuotaReserved", "False", message=NO_ROOM), evicted), "gpus")

    assert held.message == (
        f"Waiting for quota in queue gpus: {NO_ROOM}. Kueue stopped the Job before, with reason Preempted: {PREEMPTED}."
    )


def test_the_same_words_are_not_said_twice() -> None:
    evicted = condition("Evicted", "True", "Preempted", PREEMPTED)
    held = hold_of(workload(condition("QuotaReserved", "False", message=PREEMPTED), evicted), "gpus")

    assert held.message == f"Waiting for quota in queue gpus: {PREEMPTED}."


def test_a_job_whose_evicted_pods_still_end_is_not_called_admitted() -> None:
    """Kueue takes the quota back, and with it the admission, only when the pods have ended."""
    evicted = condition("Evicted", "True", "Preempted", PREEMPTED)
    held = hold_of(workload(condition("QuotaReserved", "True"), condition("Admitted", "True"), evicted), "gpus")

    assert held == Hold(
        "WaitingForQuota",
        f"Kueue stopped the Job, with reason Preempted: {PREEMPTED}. The Job waits for quota in queue gpus again when "
        "its pods have ended.",
    )


def test_an_eviction_that_is_over_is_not_told() -> None:
    over = condition("Evicted", "False", "QuotaReserved", f"Previously: {PREEMPTED}")
    held = hold_of(workload(condition("QuotaReserved", "False", message=NO_ROOM), over), "gpus")

    assert PREEMPTED not in held.message


def test_quota_without_admission_waits_for_the_checks_that_are_open() -> None:
    checks = [
        {"name": "budget", "state": "Ready", "message": "fine"},
        {"name": "nodes", "state": "Pending", "message": "Waiting for a node"},
        {"name": "region", "state": "Retry", "message": ""},
    ]
    held = hold_of(workload(condition("QuotaReserved", "True"), admissionChecks=checks), "gpus")

    assert held == Hold(
        "WaitingForAdmissionCheck",
        "Queue gpus has reserved the quota. Waiting for admission check nodes, region: Waiting for a node.",
    )


def test_an_admitted_job_is_about_to_start() -> None:
    held = hold_of(workload(condition("QuotaReserved", "True"), condition("Admitted", "True")), "gpus")

    assert held == Hold("Admitted", "Queue gpus has admitted the Job. Kueue starts it in a moment.")


@pytest.mark.parametrize(
    ("evicted", "told"),
    [
        (condition("Evicted", "True", "Deactivated", "The workload is deactivated"), "."),
        (
            condition(
                "Evicted", "True", "DeactivatedDueToAdmissionCheck", "The workload is deactivated due to a check"
            ),
            " due to a check.",
        ),
        (condition("Evicted", "True", "Deactivated", "in other words"), ": in other words."),
        (condition("Evicted", "True", "Preempted", PREEMPTED), "."),
        (condition("Evicted", "False", "QuotaReserved", "Previously: The workload is deactivated due to a check"), "."),
    ],
    ids=["by a person", "by Kueue", "in other words", "after a preemption", "once before"],
)
def test_a_deactivated_workload_is_named_with_its_cause_and_the_field_to_set(evicted: Object, told: str) -> None:
    held = hold_of(workload(condition("QuotaReserved", "False"), evicted, active=False), "gpus")

    assert held == Hold(
        "Deactivated",
        f"Workload job-a-1 is deactivated{told} Set spec.active of the Workload to true to continue.",
    )


def test_a_job_without_a_workload_says_what_can_prevent_one() -> None:
    held = hold_of(None, "gpus")

    assert held.reason == "WaitingForQuota"
    assert "kubectl get workloadpriorityclasses" in held.message


def test_a_long_message_is_cut() -> None:
    assert len(hold_of(workload(condition("QuotaReserved", "False", message="x" * 30_000)), "gpus").message) < 1_100


@given(waited=st.timedeltas(min_value=timedelta(seconds=-60), max_value=timedelta(days=30)))
def test_the_interval_of_looks_is_the_time_waited_within_its_bounds(waited: timedelta) -> None:
    interval = next_look(NOW - waited, NOW)

    assert LOOK_AGAIN <= interval <= LOOK_AGAIN_AT_LAST
    assert interval == waited or interval in (LOOK_AGAIN, LOOK_AGAIN_AT_LAST)


def test_a_thousand_jobs_that_wait_for_a_day_cause_four_requests_a_second_at_most() -> None:
    waited, looks = timedelta(0), 0
    while waited < timedelta(days=1):
        waited += next_look(NOW - waited, NOW)
        looks += 1

    assert 1000 * looks / timedelta(days=1).total_seconds() < 4
