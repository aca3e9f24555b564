"""Where a run stands: the trainer's own container decides, and the Job over pods that are being deleted."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_operator.observed.causes.workloads import UNKNOWN, Hold
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.lost import LOST_GRACE
from finetune_operator.observed.facts.pods import Companion, Pod
from finetune_operator.observed.runs import LOOK_AGAIN, LOOK_AGAIN_AT_LAST, SIDECAR_GRACE, assess
from finetune_operator.observed.standing import Standing
from tests.unit.finetune_operator.worlds import NOW, attempt, pod

SAID = TerminationMessage(reason=FailureReason.LOSS_DIVERGED, message="Loss is NaN at step 7.")
ISTIO = Companion("istio-proxy", is_running=True)
SECOND = timedelta(seconds=1)


def test_a_pod_that_is_refused_is_waited_for_with_the_clusters_own_words() -> None:
    at_first, silent = (assess(attempt(), NOW + waited) for waited in (SECOND, LOOK_AGAIN))
    refused = assess(attempt(refusal="exceeded quota: gpus"), NOW)

    assert (at_first.standing, at_first.message) == (Standing.WAITING, "")
    assert (silent.standing, silent.message) == (Standing.WAITING, f"Job {attempt().name} has no pod yet.")
    assert refused.message == f"The API server refuses the pod of Job {attempt().name}: exceeded quota: gpus. " + (
        "Wait until other pods of the namespace end, or raise ResourceQuota gpus."
    )
    assert refused.requeue_after == LOOK_AGAIN  # an Event wakes nobody


def test_a_refusal_that_lasts_is_looked_at_more_and_more_rarely() -> None:
    pauses = [assess(attempt(), NOW + timedelta(minutes=minutes)).requeue_after for minutes in (1, 5, 60, 6000)]

    assert pauses == [timedelta(seconds=12), timedelta(minutes=1), LOOK_AGAIN_AT_LAST, LOOK_AGAIN_AT_LAST]


def test_a_pod_somebody_deleted_is_an_eviction() -> None:
    assert assess(attempt(failed=True), NOW).failure is FailureReason.EVICTED


def test_a_deleted_pod_that_outstays_its_grace_period_is_a_lost_node() -> None:
    gone = attempt(pod("Running", due=NOW))

    early, late = assess(gone, NOW), assess(gone, NOW + LOST_GRACE)

    assert (early.standing, early.requeue_after) == (Standing.RUNNING, timedelta(seconds=20))
    assert (late.standing, late.failure) == (Standing.FAILED, FailureReason.NODE_LOST)
    assert late.message == "Node n1 stopped responding while it ran the pod."


@pytest.mark.parametrize(
    ("ended", "standing"),
    [({"exit_code": 0}, Standing.SUCCEEDED), ({"exit_code": 29, "termination": SAID}, Standing.FAILED)],
)
def test_a_sidecar_gets_a_grace_and_then_the_trainers_end_counts(ended: dict[str, Any], standing: Standing) -> None:
    kept_up = attempt(pod("Running", finished=NOW, companions=(ISTIO,), **ended))

    early, late = assess(kept_up, NOW + SECOND), assess(kept_up, NOW + SIDECAR_GRACE)

    assert (early.standing, early.requeue_after) == (Standing.RUNNING, SIDECAR_GRACE - SECOND)
    assert late.standing is standing
    if standing is Standing.FAILED:
        assert late.message == (
            "Loss is NaN at step 7. The pod and its log were removed, because container istio-proxy did not stop."
        )


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
@pytest.mark.parametrize(("exit_code", "standing"), [(0, Standing.SUCCEEDED), (29, Standing.FAILED)])
def test_the_pods_phase_does_not_decide_where_the_trainer_has_ended(
    phase: str, exit_code: int, standing: Standing
) -> None:
    """A sidecar that fails after a good end makes the phase Failed, as one that runs on makes it Running."""
    other = attempt(pod(phase, exit_code=exit_code, finished=NOW - timedelta(hours=1), companions=(ISTIO,)))

    assert assess(other, NOW).standing is standing


def leaving(exit_code: int | None = None, phase: str = "Failed", **fields: Any) -> Pod:
    return pod(phase, exit_code=exit_code, due=NOW + timedelta(seconds=30), **fields)


@pytest.mark.parametrize(
    "doomed", [None, leaving(33), leaving(137), leaving(phase="Running"), leaving(phase="Pending")]
)
def test_a_suspended_job_waits_whatever_becomes_of_its_pod(doomed: Pod | None) -> None:
    held = attempt(doomed, suspended=True, suspended_by="kubectl-patch")

    for moment in (NOW, NOW + timedelta(days=1)):
        found = assess(held, moment)
        assert (found.standing, found.failure) == (Standing.SUSPENDED, None)
    assert found.message == (
        "Job tickets-12345678-a1 is suspended by kubectl-patch. Set spec.suspend of that Job to false to continue."
    )


def test_a_job_in_a_queue_says_which_it_waits_for() -> None:
    message = assess(attempt(suspended=True, queue="gpus"), NOW).message

    assert message == "Job tickets-12345678-a1 is suspended and waits for admission by its queue gpus."


def test_what_kueue_says_counts_and_is_asked_again_the_later_the_longer_it_waits() -> None:
    held = attempt(
        suspended=True,
        queue="gpus",
        suspended_since=NOW - timedelta(minutes=2),
        hold=Hold("WaitingForQuota", "Waiting for quota in queue gpus: no room."),
    )

    found = assess(held, NOW)

    assert (found.standing, found.reason) == (Standing.SUSPENDED, "WaitingForQuota")
    assert found.message == "Waiting for quota in queue gpus: no room."
    assert found.requeue_after == timedelta(minutes=2)


def test_a_job_whose_workload_cannot_be_read_says_what_the_job_itself_shows() -> None:
    found = assess(attempt(suspended=True, queue="gpus", hold=UNKNOWN), NOW)

    assert found.reason == "Suspended"
    assert found.message == "Job tickets-12345678-a1 is suspended and waits for admission by its queue gpus."
    assert found.requeue_after is not None


def test_without_kueues_word_nothing_is_looked_at_again() -> None:
    assert assess(attempt(suspended=True, queue="gpus"), NOW).requeue_after is None


def test_a_job_that_a_queue_controller_holds_without_a_queue_is_told_where_to_name_one() -> None:
    message = assess(attempt(suspended=True), NOW).message

    assert "label kueue.x-k8s.io/queue-name" in message
    assert "spec.pods.preflight.queueName" in message


def test_a_pod_that_did_its_work_before_the_suspension_has_succeeded() -> None:
    assert assess(attempt(leaving(0, "Succeeded"), suspended=True), NOW).standing is Standing.SUCCEEDED


def test_a_pod_that_failed_by_itself_counts_though_its_job_was_suspended_then() -> None:
    assert assess(attempt(pod("Failed", exit_code=29), suspended=True), NOW).failure is FailureReason.LOSS_DIVERGED


def test_a_deleted_pod_that_failed_counts_once_its_job_says_so() -> None:
    """The suspension of its Job may not be seen yet."""
    gone = attempt(leaving(33))

    assert assess(gone, NOW).standing is Standing.WAITING
    assert assess(gone, NOW + timedelta(seconds=30) + LOST_GRACE).standing is Standing.FAILED
    assert assess(replace(gone, failed=True), NOW).failure is FailureReason.PREEMPTED


def test_a_pod_that_is_gone_leaves_its_reason_in_the_status() -> None:
    gone = attempt(failed=True)

    assert assess(gone, NOW).failure is FailureReason.EVICTED
    said = assess(gone, NOW, ("Loss is NaN at step 7.", FailureReason.LOSS_DIVERGED))
    assert (said.failure, said.message) == (FailureReason.LOSS_DIVERGED, "Loss is NaN at step 7.")


def test_a_job_that_somebody_gave_a_deadline_says_so() -> None:
    late = attempt(failed=True, failure="DeadlineExceeded: Job was active longer than specified deadline")

    assert "DeadlineExceeded: Job was active longer than specified deadline." in assess(late, NOW).message


CREATED = "2026-01-02T03:04:05Z"


def job(manager: str = "kubectl-patch", **spec: Any) -> dict[str, Any]:
    own = {"manager": "maker", "fieldsV1": {"f:spec": {"f:backoffLimit": {}}}}
    other = {"manager": manager, "fieldsV1": {"f:spec": {"f:suspend": {}}}}
    labels = {"kueue.x-k8s.io/queue-name": "gpus"}
    metadata = {"name": "a1", "creationTimestamp": CREATED, "managedFields": [own, other], "labels": labels}
    return {"metadata": metadata, "spec": spec, "status": {"startTime": CREATED}}


def test_of_several_pods_the_newest_that_is_not_thrown_away_counts() -> None:
    old, new = pod(name="old"), replace(leaving(), name="new", created=NOW + SECOND)

    def counted(pods: list[Pod]) -> str:
        found = Run.parse(job()).with_pods(pods).pod
        assert found is not None
        return found.name

    assert counted([old, new]) == counted([new, old]) == "old"
    assert counted([replace(old, due=NOW), new]) == "new"
    assert counted([old, replace(new, due=None)]) == "new"


def test_a_job_tells_who_suspended_it_and_its_queue() -> None:
    run = Run.parse(job(suspend=True))

    assert (run.suspended, run.suspended_by, run.queue, run.begun) == (True, "kubectl-patch", "gpus", NOW)


@pytest.mark.parametrize(
    ("condition", "after"), [("Failed", 0), ("Complete", 0), ("Suspended", 120), ("SuccessCriteriaMet", None)]
)
def test_the_pods_of_a_job_end_with_it_or_in_the_grace_period_of_a_stop(condition: str, after: int | None) -> None:
    over = job(template={"spec": {"terminationGracePeriodSeconds": 120}}, suspend=True)
    over["status"]["conditions"] = [{"type": condition, "status": "True", "lastTransitionTime": CREATED}]

    assert Run.parse(over).pods_end_by == (None if after is None else NOW + after * SECOND)


def test_the_condition_of_a_stop_that_is_over_ends_no_pod() -> None:
    resumed = job(suspend=False)
    resumed["status"]["conditions"] = [{"type": "Suspended", "status": "True", "lastTransitionTime": CREATED}]

    assert Run.parse(resumed).pods_end_by is None


def test_whoever_made_a_job_did_not_suspend_it() -> None:
    made = job(suspend=True)
    made["metadata"]["managedFields"] = [
        {"manager": "maker", "fieldsV1": {"f:spec": {"f:suspend": {}, "f:backoffLimit": {}}}}
    ]

    assert Run.parse(made).suspended_by == ""


@pytest.mark.parametrize(
    ("run", "is_live"),
    [
        (attempt(), True),
        (attempt(pod()), True),
        (attempt(pod("Failed")), False),
        (attempt(leaving(), suspended=True), True),
        (attempt(pod(exit_code=0, companions=(ISTIO,))), True),
        (attempt(pod(), failed=True), False),
    ],
)
def test_a_job_is_live_as_long_as_it_can_start_or_hold_a_pod(run: Run, is_live: bool) -> None:
    assert run.is_live is is_live
