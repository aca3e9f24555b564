"""A failed attempt is tried again according to its reason, and every attempt is on record."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.attempts.placement import IN_USE_LIMIT, NO_NODE_LIMIT
from tests.integration import sample_status
from tests.integration.finetune_operator.kubelet import NODE, Kubelet
from tests.integration.finetune_operator.running import DELETED, SECOND, training
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest, ready_of
from tests.integration.kube import BATCH_JOBS, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


def arguments(job: Job, child: str) -> list[str]:
    container = job.batch_jobs()[child]["spec"]["template"]["spec"]["containers"][0]
    return list(container["args"])


def records(job: Job) -> list[Object]:
    return list(job.status()["attempts"])


def test_a_storage_that_does_not_answer_is_tried_again_after_a_pause(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    first.says_it_failed(FailureReason.STORAGE_UNAVAILABLE, "S3 answered 503.")
    first.fails(FailureReason.STORAGE_UNAVAILABLE, "S3 answered 503.")

    waiting = job.wait_for_reason("Retrying")
    assert waiting["state"] == "Pending"
    told = ready_of(waiting)["message"]
    assert told.startswith("Attempt 1 ended with StorageUnavailable: S3 answered 503. Attempt 2 starts at ")
    second = kubelet.pod_of(namespace, job.child(SECOND))
    second.runs()
    shown = job.wait_for_reason("Training")
    assert (shown["stage"], job.ready()["message"]) == ("Training", "Training attempt 2 is running.")
    assert {"Job", "Pod"} <= {child.split("/")[0] for child in job.children() if first.name in child or "-a1" in child}
    kubelet.play(namespace, job.is_complete, job.selector)

    status = job.status()
    assert status["counts"] == {"attempts": 2, "retries": 1, "reasons": {"StorageUnavailable": 1}}
    assert [(a["number"], a["reason"], a["nodeName"]) for a in status["attempts"]] == [
        (1, "StorageUnavailable", NODE),
        (2, "Succeeded", NODE),
    ]
    assert status["gpuSeconds"] == sum(a["gpuSeconds"] for a in status["attempts"])
    assert [e["reason"] for e in job.events()] == ["Retrying", "Succeeded"]


def test_a_deleted_pod_is_an_interruption_and_the_next_attempt_starts_at_once(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet, runPolicy={"maxRetries": 1})
    first.is_gone()

    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)

    reason = records(job)[0]["reason"]
    assert reason in DELETED
    assert DELETED[reason] in records(job)[0]["message"]
    assert job.status()["counts"] == {"attempts": 2, "interruptions": 1, "reasons": {reason: 1}}


def test_interruptions_of_a_long_evaluation_end_the_job_only_if_an_attempt_stored_no_further_result(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, pod = training(kube, namespace, kubelet, runPolicy={"maxRetries": 0})
    for number in (1, 2, 3):
        pod.says_it_kept(results=number)
        pod.is_gone()
        pod = kubelet.pod_of(namespace, job.child(f"a{number + 1}"))
        pod.runs()
        job.wait_for_reason("Training")
    pod.says_it_kept(results=3)
    pod.is_gone()

    status = wait_for("the end", job.status, lambda status: status.get("state") == "Failed")
    reason = status["attempts"][-1]["reason"]
    assert reason in DELETED
    job.assert_failed(FailureReason(reason), "interruptions in a row without progress")
    assert [(a["keptResults"], a["progressed"]) for a in records(job)] == [
        (1, True),
        (2, True),
        (3, True),
        (3, False),
    ]


def test_a_deleted_job_is_an_interruption_and_its_pod_is_waited_for(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    kube.delete(f"{BATCH_JOBS.format(namespace)}/{job.child(ATTEMPT)}")
    wait_for("the end to be on record", lambda: records(job)[0].get("reason") == "Evicted")
    wait_for("the pod to be asked to stop", lambda: any("deletionTimestamp" in p["metadata"] for p in job.pods()))
    assert SECOND not in job.batch_jobs()

    first.is_gone()
    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)
    assert "completionTime" in records(job)[0]


def test_a_broken_gpu_is_avoided(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job, first = training(kube, namespace, kubelet)
    first.fails(FailureReason.GPU_FAULT, "No usable GPU was found.")

    second = kubelet.pod_of(namespace, job.child(SECOND))
    (term,) = second.pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": [NODE]}]
    wait_for("the node to be named", lambda: f"It does not use {NODE}" in job.ready()["message"])
    assert records(job)[1]["avoidedNodes"] == [NODE]


@pytest.mark.thorough
def test_a_node_that_refuses_two_attempts_in_a_row_is_avoided(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job, first = training(kube, namespace, kubelet)
    first.is_refused("UnexpectedAdmissionError", "Allocate failed due to unhealthy devices")
    second = kubelet.pod_of(namespace, job.child(SECOND))
    assert "affinity" not in second.pod["spec"]
    second.is_refused("UnexpectedAdmissionError", "Allocate failed due to unhealthy devices")
    third = kubelet.pod_of(namespace, job.child("a3"))

    (term,) = third.pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": [NODE]}]
    wait_for("the third to be on record", lambda: len(records(job)) == 3)
    assert [(r.get("reason"), r.get("nodeName")) for r in records(job)] == [("NodeFault", NODE)] * 2 + [(None, None)]
    assert job.status()["counts"]["inVain"] == 2


def test_a_broken_gpu_on_the_only_node_fails_the_job_at_the_time_that_it_has_told(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    first.fails(FailureReason.GPU_FAULT, "No usable GPU was found.")
    second = kubelet.pod_of(namespace, job.child(SECOND))
    avoided = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    said = f"{avoided} preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    began = datetime.now(UTC) + timedelta(seconds=90)  # later than the time at which the API server notes the words
    second.finds_no_node(said, since=began)

    end = f"{began + NO_NODE_LIMIT:%Y-%m-%d %H:%M} UTC"
    told = wait_for("the end of the wait", lambda: str(job.ready()["message"]), lambda message: end in message)
    assert told.startswith(f"The pod waits for a node: {said} ")
    assert told.endswith(
        f"It does not use {NODE}, because earlier attempts failed there. The job fails at {end} if no other node can "
        "run the pod by then."
    )
    assert job.status()["state"] == "Queued"

    # However new the words are, the scheduler has found no node for almost the longest time.
    second.finds_no_node(said, since=datetime.now(UTC) - IN_USE_LIMIT + timedelta(seconds=3))
    job.assert_failed(
        FailureReason.GPU_FAULT, f"A GPU failed on {NODE}, and no other node has taken the pod for 24 h: {said}"
    )
    assert [a["reason"] for a in records(job)] == [FailureReason.GPU_FAULT] * 2
    wait_for("its Job to go", lambda: SECOND not in job.batch_jobs())


def test_a_checkpoint_that_the_next_attempt_cannot_use_is_told_while_it_trains_and_the_records_show_the_steps(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    """What the trainer says is from tests/integration/finetune_trainer/resume/test_storage.py."""

    def progress(**numbers: int) -> dict[str, object]:
        return {"training": sample_status.TRAINING.model_copy(update=numbers)}

    job, first = training(kube, namespace, kubelet)
    first.writer.result(**progress(attempt=1, step=20, checkpoint_step=20))
    first.is_gone()
    second = kubelet.pod_of(namespace, job.child(SECOND))
    second.runs()
    skipped = (
        "s3://acme-models/tickets/.work/1/checkpoints/step-00000020-1.1-p1 is not used: its file state.safetensors has "
        "1,000 bytes instead of 9,320. Resumed at step 10 from the checkpoint of attempt 1."
    )
    second.writer.condition(ConditionType.TRAINED, False, "Training", skipped)
    second.writer.result(**progress(attempt=2, step=10, resumed_from_step=10, checkpoint_step=10))

    wait_for("it to train", job.ready, lambda ready: ready["message"] == "Training attempt 2 is running.")
    status = job.status()
    (told,) = [c for c in status["conditions"] if c["type"] == ConditionType.TRAINED]
    assert (told["status"], told["message"], status["state"]) == ("False", skipped, "Running")
    assert (status["training"]["attempt"], status["training"]["resumedFromStep"]) == (2, 10)

    second.writer.condition(ConditionType.TRAINED, True, "TrainingSucceeded", "24 of 24 steps are done.")
    second.writer.result(**progress(attempt=2, step=24, resumed_from_step=10, checkpoint_step=24))
    second.says_it_evaluated()
    second.says_it_published()
    second.succeeds()
    job.wait_for_reason("Succeeded")
    before, after = records(job)
    assert (before["checkpointStep"], after["resumedFromStep"], after["lastStep"]) == (20, 10, 24)


def test_out_of_gpu_memory_is_tried_once_more_with_half_the_micro_batch(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    first.fails(FailureReason.GPU_OUT_OF_MEMORY, "Step 3 needs more memory.")

    second = kubelet.pod_of(namespace, job.child(SECOND))
    assert arguments(job, SECOND)[:5] == ["train", "--attempt", "2", "--halvings", "1"]
    second.runs()
    job.wait_for_reason("Training")
    second.fails(FailureReason.GPU_OUT_OF_MEMORY, "Step 3 needs more memory.")
    job.assert_failed(FailureReason.GPU_OUT_OF_MEMORY, "Attempt 2 of 2 failed: Step 3 needs more memory. Lower")


def test_a_preflight_is_tried_again_when_the_storage_did_not_answer(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest())
    first = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    first.runs()
    first.says_the_data_is_bad(FailureReason.STORAGE_UNAVAILABLE, "S3 answered 503.")
    first.fails(FailureReason.STORAGE_UNAVAILABLE, "S3 answered 503.")
    job.wait_for_reason("Retrying")

    kubelet.pod_of(namespace, job.child(f"{PREFLIGHT}-2")).validates()
    kubelet.play(namespace, job.is_complete, job.selector)

    status = job.status()
    assert [(p["number"], p["reason"]) for p in status["preflights"]] == [(1, "StorageUnavailable")]
    assert status["counts"] == {
        "attempts": 1,
        "preflights": 2,
        "retries": 1,
        "preflightReasons": {"StorageUnavailable": 1},
    }


def test_a_job_ends_when_its_retries_are_used_up_and_says_what_was_tried(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet, runPolicy={"maxRetries": 1})
    first.crashes(1)
    second = kubelet.pod_of(namespace, job.child(SECOND))
    second.runs()
    job.wait_for_reason("Training")
    second.crashes(1)

    job.assert_failed(
        FailureReason.TRAINER_CRASHED, "Attempt 2 of 2 failed: The trainer ended with exit code 1 without"
    )


def test_the_role_binding_is_made_again_while_an_attempt_runs(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job, _ = training(kube, namespace, kubelet)
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/finetune-trainer"
    before = kube.get(path)["metadata"]["uid"]
    kube.delete(path)
    wait_for("another", lambda: (kube.find(path) or {"metadata": {"uid": before}})["metadata"]["uid"] != before)
    kubelet.play(namespace, job.is_complete, job.selector)
