"""Why a pod failed: what the cluster says first, then the trainer's own word."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_operator.runs import IMAGE_GRACE, LOOK_AGAIN, LOST_GRACE, Standing, assess
from finetune_operator.world import PodCondition
from tests.unit.finetune_operator.worlds import NOW, attempt, pod

SAID = TerminationMessage(reason=FailureReason.LOSS_DIVERGED, message="Loss is NaN at step 7.")


def disrupted(reason: str) -> dict[str, Any]:
    return {"conditions": {"DisruptionTarget": PodCondition("True", reason, "")}}


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        (disrupted("PreemptionByScheduler"), FailureReason.PREEMPTED),
        (disrupted("EvictionByEvictionAPI"), FailureReason.EVICTED),
        (disrupted("DeletionByTaintManager"), FailureReason.NODE_LOST),
        (disrupted("PreemptionByScheduler") | {"termination": SAID}, FailureReason.PREEMPTED),
        (
            disrupted("TerminationByKubelet") | {"message": "Usage of EmptyDir volume scratch exceeds the limit"},
            FailureReason.DISK_FULL,
        ),
        ({"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}, FailureReason.DISK_FULL),
        ({"reason": "Evicted", "message": "The node was low on resource: memory."}, FailureReason.EVICTED),
        ({"termination_reason": "OOMKilled", "exit_code": 137}, FailureReason.HOST_OUT_OF_MEMORY),
        ({"termination": SAID, "exit_code": 29}, FailureReason.LOSS_DIVERGED),
        ({"exit_code": 31}, FailureReason.GPU_FAULT),
        ({"exit_code": 143}, FailureReason.PREEMPTED),
        ({"exit_code": 1}, FailureReason.TRAINER_CRASHED),
        ({"exit_code": 139, "termination_reason": "Error"}, FailureReason.TRAINER_CRASHED),
        ({}, FailureReason.NODE_LOST),
    ],
)
def test_a_failed_pod_is_told_apart(fields: dict[str, Any], failure: FailureReason) -> None:
    assessment = assess(attempt(pod("Failed", **fields)), NOW)

    assert (assessment.standing, assessment.failure) == (Standing.FAILED, failure)
    assert assessment.message.endswith((".", "limit", "EmptyDir volume scratch exceeds the limit"))


def test_the_trainers_own_sentence_is_kept() -> None:
    assert assess(attempt(pod("Failed", termination=SAID)), NOW).message == "Loss is NaN at step 7."


def test_a_pod_that_is_refused_is_waited_for_with_the_clusters_own_words() -> None:
    silent, refused = (assess(attempt(refusal=refusal), NOW) for refusal in ("", "exceeded quota: gpus"))

    assert (silent.standing, silent.message) == (Standing.WAITING, f"Job {attempt().name} has no pod yet.")
    assert refused.message == f"The pod of Job {attempt().name} is refused: exceeded quota: gpus."
    assert refused.requeue_after == LOOK_AGAIN  # an Event wakes nobody


def test_a_pod_somebody_deleted_is_an_eviction() -> None:
    assert assess(attempt(failed=True), NOW).failure is FailureReason.EVICTED


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_gets_a_grace_and_then_fails(reason: str) -> None:
    stuck = attempt(pod("Pending", waiting_reason=reason, waiting_message="no such image"))

    early = assess(stuck, NOW + timedelta(seconds=10))
    late = assess(stuck, NOW + IMAGE_GRACE)

    assert (early.standing, early.requeue_after) == (Standing.WAITING, IMAGE_GRACE - timedelta(seconds=10))
    assert (late.standing, late.failure) == (Standing.FAILED, FailureReason.IMAGE_PULL_FAILED)
    assert "no such image" in late.message


def test_the_images_grace_counts_from_the_moment_a_node_was_found() -> None:
    placed = {"PodScheduled": PodCondition("True", "", "", since=NOW + timedelta(hours=1))}
    queued_long = attempt(pod("Pending", waiting_reason="ErrImagePull", conditions=placed))

    assert assess(queued_long, NOW + timedelta(hours=1, seconds=10)).standing is Standing.WAITING


def test_a_deleted_pod_that_outstays_its_grace_period_is_a_lost_node() -> None:
    gone = attempt(pod("Running", due=NOW))

    early, late = assess(gone, NOW), assess(gone, NOW + LOST_GRACE)

    assert (early.standing, early.requeue_after) == (Standing.RUNNING, LOST_GRACE)
    assert (late.standing, late.failure) == (Standing.FAILED, FailureReason.NODE_LOST)
    assert late.message == "Node n1 stopped answering while it ran the pod."
