"""What the operator does at each step of a job, from its preflight to its end."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.names import LABEL_QUEUE
from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile, refused
from finetune_operator.observed.facts.pods import PodCondition
from tests.unit.finetune_operator.decisions.simulation import Cluster
from tests.unit.finetune_operator.plans import conditions, kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    NOW,
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


def test_a_running_preflight_shows_as_validating() -> None:
    plan = reconcile(fresh(preflight=preflight(pod())), NOW)

    assert plan.status is not None
    assert (plan.status["state"], plan.status["stage"]) == ("Validating", "Preflight")


def test_only_after_the_preflight_is_a_gpu_asked_for() -> None:
    plan = reconcile(validated(), NOW)

    assert kinds(plan) == ["Job"]
    (job,) = plan.create
    assert job["metadata"]["name"] == "tickets-12345678-a1"
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert state(plan) == "Queued"


def test_a_preflight_job_that_somebody_removed_is_not_run_again_once_it_has_spoken() -> None:
    world = saying(fresh(), ConditionType.VALIDATED)

    assert [body["metadata"]["name"] for body in reconcile(world, NOW).create if body["kind"] == "Job"] == [
        "tickets-12345678-a1"
    ]


def test_a_preflight_whose_job_was_deleted_is_on_record_and_repeated_only_after_the_job_was_read() -> None:
    first = reconcile(fresh(), NOW)
    gone = with_status(fresh(), first)

    told = reconcile(gone, NOW)
    again = reconcile(with_status(gone, told), NOW)

    assert (kinds(told), reason(told), [event.reason for event in told.events]) == ([], "Retrying", ["Retrying"])
    assert told.status is not None
    (record,) = told.status["preflights"]
    assert (record["number"], record["reason"]) == (1, "Evicted")
    assert record["message"] == "Job tickets-12345678-preflight was deleted before its work was done."
    assert told.status["counts"] == {"attempts": 0, "interruptions": 1, "preflightReasons": {"Evicted": 1}}
    assert again.create[-1]["metadata"]["name"] == "tickets-12345678-preflight-2"
    assert (first.is_final, told.is_final, again.is_final) == (False, True, True)


def test_a_preflight_whose_job_is_deleted_again_and_again_ends_the_job() -> None:
    cluster = Cluster(spec=SPEC.model_copy(update={"run_policy": RunPolicy(max_interruptions=3)}))
    deleted = 0
    for _ in range(20):
        pause = cluster.settle() or timedelta(0)
        for job in [] if cluster.is_over else list(cluster.jobs.values()):
            cluster.delete_job(job.name)
            deleted += 1
        cluster.now += pause

    assert (deleted, cluster.status["counts"]["interruptions"]) == (4, 4)
    assert [record["number"] for record in cluster.status["preflights"]] == [1, 2, 3, 4]
    assert cluster.status["conditions"][0]["reason"] == "Evicted"
    assert "spec.runPolicy.maxInterruptions allows 3 interruptions" in cluster.status["conditions"][0]["message"]


def test_a_preflight_whose_job_was_never_seen_is_no_interruption() -> None:
    for world in (fresh(), with_status(fresh(), refused(fresh(), "No.", NOW))):
        plan = reconcile(world, NOW)

        assert plan.create[-1]["metadata"]["name"] == "tickets-12345678-preflight"
        assert plan.status is not None
        assert "preflights" not in plan.status


def test_a_preflight_that_suspend_has_removed_is_no_interruption() -> None:
    cluster = Cluster()
    for suspend in (False, True, False):
        cluster.spec = cluster.spec.model_copy(update={"suspend": suspend})
        cluster.settle()

    assert list(cluster.jobs) == ["tickets-12345678-preflight"]
    assert "interruptions" not in cluster.status["counts"]


def test_a_failed_preflight_ends_the_job_and_asks_for_nothing() -> None:
    world = fresh(preflight=preflight(pod("Failed", exit_code=21), failed=True))

    plan = reconcile(world, NOW)

    assert (plan.create, state(plan), conditions(plan)["Stalled"]) == ([], "Failed", "True")


def test_a_node_whose_clock_is_ahead_does_not_delay_the_next_preflight() -> None:
    failed = pod("Failed", exit_code=26, finished=NOW + timedelta(hours=1))
    world = fresh(preflight=preflight(failed, failed=True))

    world = with_status(world, reconcile(world, NOW))

    assert kinds(reconcile(world, NOW + timedelta(seconds=9))) == []
    assert "Job" in kinds(reconcile(world, NOW + timedelta(seconds=10)))


def test_the_preflights_own_word_on_validated_is_left_alone() -> None:
    world = saying(fresh(preflight=preflight(pod("Failed", exit_code=21))), ConditionType.VALIDATED, "False")

    assert "Validated" not in conditions(reconcile(world, NOW))


@pytest.mark.parametrize(
    ("said", "stage"),
    [([], "Training"), (["Trained"], "Evaluating"), (["Trained", "Evaluated"], "Publishing")],
)
def test_the_stage_follows_what_the_attempt_says(said: list[str], stage: str) -> None:
    world = validated(attempts={1: attempt(pod())})
    for type in said:
        world = saying(world, ConditionType(type))

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert (plan.status["state"], plan.status["stage"]) == ("Running", stage)


def test_a_job_without_room_is_queued_and_says_what_it_waits_for() -> None:
    no_room = {
        "PodScheduled": PodCondition(
            "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        )
    }
    world = validated(attempts={1: attempt(pod("Pending", conditions=no_room))})

    plan = reconcile(world, NOW)

    assert state(plan) == "Queued"
    assert "Insufficient nvidia.com/gpu" in message(plan)


def test_a_finished_attempt_completes_the_job_with_its_verdict() -> None:
    evaluation = {"rows": 5, "verdict": "It was worth it.", "observedTime": "2026-01-02T03:04:05Z"}
    world = published(attempts={1: attempt(pod("Succeeded", exit_code=0), succeeded=True)})
    world = replace(world, raw_status={**world.raw_status, "evaluation": evaluation})
    world = with_status(world, Plan(status={"conditions": []}))

    plan = reconcile(world, NOW)

    assert (state(plan), message(plan)) == ("Complete", "It was worth it.")
    assert conditions(plan) == {"Ready": "True", "Reconciling": "False", "Stalled": "False", "Complete": "True"}
    assert plan.status is not None
    assert plan.status["attempts"][0]["reason"] == "Succeeded"


def test_an_attempt_that_ends_well_without_results_does_not_complete_the_job() -> None:
    """As of an image that is not the trainer's, or of one that ends well at SIGTERM."""
    for ended in (
        attempt(pod("Succeeded", exit_code=0), succeeded=True),
        attempt(pod("Succeeded")),
        attempt(succeeded=True),
    ):
        plan = reconcile(validated(attempts={1: ended}), NOW)

        assert (state(plan), conditions(plan)["Failed"]) == ("Failed", "True")
        assert message(plan).startswith("Job tickets-12345678-a1 ended with exit code 0, but published no results.")
        assert "spec.trainer.image" in message(plan)


def test_results_of_a_later_version_that_cannot_be_read_are_results() -> None:
    done = {1: attempt(pod("Succeeded", exit_code=0), succeeded=True)}
    world = validated(attempts=done)
    later = replace(world, raw_status={**world.raw_status, "artifacts": {"folder": "s3://r/run"}})

    assert state(reconcile(later, NOW)) == "Complete"


def test_a_failed_attempt_ends_the_job_and_is_recorded() -> None:
    world = validated(attempts={1: attempt(pod("Failed", exit_code=29))})

    plan = reconcile(world, NOW)

    assert plan.status is not None
    (record,) = plan.status["attempts"]
    assert (record["number"], record["reason"], record["exitCode"]) == (1, "LossDiverged", 29)
    assert message(plan).endswith(FAILURES[FailureReason.LOSS_DIVERGED].remedy)
    assert plan.events[0].type == "Warning"


def test_a_pod_that_can_never_start_is_removed_with_its_job() -> None:
    stuck = pod(
        "Pending", waiting_reason="ErrImagePull", waiting_message="not found", created=NOW - timedelta(minutes=5)
    )
    world = validated(attempts={1: attempt(stuck)})
    plan = reconcile(world, NOW)
    ended = reconcile(replace(with_status(world, plan), attempts={}), NOW)

    assert plan.delete_jobs == ["tickets-12345678-a1"]
    assert ended.events[0].reason == "ImagePullFailed"


def test_kueues_queue_travels_to_the_attempt_alone() -> None:
    (job,) = reconcile(validated(queue="gpus"), NOW).create
    first = reconcile(fresh(queue="gpus"), NOW).create[-1]

    assert job["metadata"]["labels"][LABEL_QUEUE] == "gpus"
    assert "suspend" not in job["spec"]
    assert LABEL_QUEUE not in first["metadata"]["labels"]


def test_a_job_whose_failure_has_no_bound_still_ends_with_its_remedy() -> None:
    said = TerminationMessage(reason=FailureReason.DATASET_INVALID, message="row " * 2000)

    plan = reconcile(fresh(preflight=preflight(pod("Failed", termination=said))), NOW)

    assert state(plan) == "Failed"
    assert len(message(plan)) <= 4096
    assert message(plan).endswith(FAILURES[FailureReason.DATASET_INVALID].remedy)


def test_a_job_being_deleted_is_left_to_the_garbage_collector() -> None:
    assert reconcile(fresh(deleting=True), NOW) == Plan()
