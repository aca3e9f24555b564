"""A run on several nodes has one state and one cause, whatever its pods say."""

from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.lost import LOST_GRACE
from finetune_operator.observed.facts.pods import NodeState, Pod, PodCondition
from finetune_operator.observed.gang_ends import LOSS_LIMIT, OTHERS_LIMIT
from finetune_operator.observed.runs import LOOK_AGAIN, assess
from finetune_operator.observed.standing import RunStanding, Standing
from tests.unit.finetune_operator.worlds import NOW, pod

SECOND = timedelta(seconds=1)
LOST, PREEMPTED = FailureReason.PEER_LOST, FailureReason.PREEMPTED
CRASHED, GPU_FAULT = FailureReason.TRAINER_CRASHED, FailureReason.GPU_FAULT
UNSCHEDULABLE = {"PodScheduled": PodCondition("False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.")}
DRAINED = {"DisruptionTarget": PodCondition("True", "EvictionByEvictionAPI", "", NOW)}
TAINTED = {"DisruptionTarget": PodCondition("True", "DeletionByTaintManager", "", NOW)}


def gang(*pods: Pod, nodes: int = 2, **fields: Any) -> Run:
    """An attempt with one pod on each node."""
    return Run("tickets-a1", NOW, begun=NOW, nodes=nodes, **fields).with_pods(list(pods))


def on(index: int, phase: str = "Running", **fields: Any) -> Pod:
    """The pod with this index, on its own node."""
    return pod(phase, **{"name": f"p{index}", "node_name": f"n{index}", "index": index, **fields})


def ended(index: int, reason: FailureReason | None, seconds: float = 0, **fields: Any) -> Pod:
    """A pod whose trainer has reported its end. None: it has succeeded."""
    code = FAILURES[reason].exit_code if reason else 0
    told = TerminationMessage(reason=reason or "Succeeded", message=f"Rank {index} of 2.")
    phase = "Failed" if reason else "Succeeded"
    return on(index, phase, **{"exit_code": code, "termination": told, "finished": NOW + seconds * SECOND, **fields})


def end_of(run: Run, after: float = 0) -> RunStanding:
    return assess(run, NOW + timedelta(seconds=after))


@pytest.mark.parametrize(
    ("pods", "standing"),
    [
        ([on(0), on(1)], Standing.RUNNING),
        ([on(0), on(1, "Pending")], Standing.WAITING),
        ([on(0, "Pending"), on(1)], Standing.WAITING),
        ([on(0)], Standing.WAITING),
        ([on(1)], Standing.WAITING),
        ([], Standing.WAITING),
        ([ended(0, None), ended(1, None)], Standing.SUCCEEDED),
        ([ended(0, None), ended(1, CRASHED)], Standing.SUCCEEDED),
        ([ended(1, None), on(0)], Standing.RUNNING),
        ([ended(0, CRASHED), ended(1, LOST)], Standing.FAILED),
        ([ended(0, CRASHED), on(1)], Standing.RUNNING),
    ],
)
def test_all_pods_together_have_one_state(pods: list[Pod], standing: Standing) -> None:
    for order in permutations(pods):
        assert end_of(gang(*order)).standing is standing


def test_what_keeps_one_pod_from_starting_is_told_of_the_run() -> None:
    unplaced = on(1, "Pending", node_name=None, conditions=UNSCHEDULABLE)
    assert end_of(gang(on(0), unplaced)).message.startswith("The pod waits for a node: 0/1 nodes are available")
    late = end_of(gang(on(0), nodes=3), LOOK_AGAIN.total_seconds())
    assert late.message == "Job tickets-a1 has 1 of 3 pods."
    refused = end_of(gang(on(0), refusal="exceeded quota: gpus"))
    assert refused.message.startswith("The API server refuses the pod of Job tickets-a1: exceeded quota: gpus.")


@pytest.mark.parametrize(
    ("pods", "reason", "said"),
    [
        ([ended(0, LOST, 1), ended(1, GPU_FAULT, 2)], GPU_FAULT, "Rank 1 of 2."),
        ([ended(0, GPU_FAULT, 2), ended(1, LOST, 1)], GPU_FAULT, "Rank 0 of 2."),
        ([ended(0, PREEMPTED, 1), ended(1, GPU_FAULT, 2)], GPU_FAULT, "Rank 1 of 2."),
        ([ended(0, LOST, 1), ended(1, PREEMPTED, 2)], PREEMPTED, "Rank 1 of 2."),
        ([ended(0, CRASHED, 2), ended(1, GPU_FAULT, 1)], GPU_FAULT, "Rank 1 of 2."),
        ([ended(0, PREEMPTED), ended(1, PREEMPTED)], PREEMPTED, "Rank 0 of 2."),
        ([ended(0, LOST, 1), ended(1, LOST, 2)], LOST, "Rank 0 of 2."),
        (
            [ended(0, LOST), on(1, "Failed", exit_code=137, finished=NOW, termination_reason="OOMKilled")],
            FailureReason.HOST_OUT_OF_MEMORY,
            "Pod p1 on node n1: The container exceeded its memory limit and was killed.",
        ),
        (
            [ended(0, PREEMPTED), on(1, "Failed", reason="Evicted", message='Usage of EmptyDir volume "tmp".')],
            FailureReason.DISK_FULL,
            'Pod p1 on node n1: The pod was evicted: Usage of EmptyDir volume "tmp".',
        ),
        (
            [
                ended(0, PREEMPTED),
                ended(1, PREEMPTED, 5, conditions=DRAINED),
            ],
            FailureReason.EVICTED,
            "The pod was evicted, for example because its node was drained.",
        ),
        (
            [ended(0, LOST)],
            FailureReason.EVICTED,
            "The pod with index 1 of Job tickets-a1 was deleted before its work was done.",
        ),
        (
            [ended(1, LOST)],
            FailureReason.EVICTED,
            "The pod with index 0 of Job tickets-a1 was deleted before its work was done.",
        ),
    ],
    ids=[
        "the cause first", "the cause on node 0", "asked to stop", "stopped", "the first of two", "all asked to stop",
        "all lost", "memory", "evicted", "drained", "deleted", "first deleted",
    ],
)  # fmt: skip
def test_the_cause_outranks_what_the_other_pods_say(pods: list[Pod], reason: FailureReason, said: str) -> None:
    for order in permutations(pods):
        found = end_of(gang(*order), 10)
        assert (found.standing, found.failure, found.message) == (Standing.FAILED, reason, said)


def test_what_rank_0_wrote_in_the_status_is_not_the_word_of_another_pod() -> None:
    killed = on(1, "Failed", exit_code=137, finished=NOW)
    found = assess(gang(ended(0, LOST, 1), killed), NOW, ("The connection broke.", LOST))
    assert (found.failure, found.message[:18]) == (FailureReason.KILLED, "Pod p1 on node n1:")
    silent = on(0, "Failed", exit_code=137, finished=NOW)
    found = assess(gang(silent, ended(1, LOST, 1)), NOW, ("The loss is NaN.", FailureReason.LOSS_DIVERGED))
    assert found.failure is FailureReason.LOSS_DIVERGED


@pytest.mark.parametrize("reason", [None, CRASHED])
def test_the_ends_of_the_other_pods_are_waited_for_up_to_a_limit(reason: FailureReason | None) -> None:
    run, limit = gang(ended(0, reason), on(1)), OTHERS_LIMIT.total_seconds()
    early, late = end_of(run, limit - 1), end_of(run, limit)
    assert (early.standing, early.requeue_after) == (Standing.RUNNING, SECOND)
    assert late.standing is (Standing.FAILED if reason else Standing.SUCCEEDED)
    assert run.is_live, "so that the Job is deleted, with the pod that did not end"


def test_where_a_peer_was_lost_the_cause_is_waited_for() -> None:
    run, limit = gang(ended(0, LOST), on(1)), LOSS_LIMIT.total_seconds()
    assert end_of(run, limit - 1).standing is Standing.RUNNING
    assert end_of(run, limit).failure is LOST


def test_a_node_that_stopped_responding_is_the_cause_as_soon_as_the_cluster_has_seen_it() -> None:
    silent = on(1, due=NOW + 120 * SECOND, grace=120 * SECOND, conditions=TAINTED, node_state=NodeState.SILENT)
    found = end_of(gang(ended(0, LOST), silent), 1)
    said = "Pod p1 on node n1 was lost. The pod's node was tainted, for example because it was unreachable."
    assert (found.failure, found.message) == (FailureReason.NODE_LOST, said)
    # Its node may be cut off from the control plane alone: then the pods train on until the pod counts as lost.
    alone = gang(on(0), silent)
    assert end_of(alone, 1).standing is Standing.RUNNING
    assert end_of(alone, LOST_GRACE.total_seconds()).failure is FailureReason.NODE_LOST


def test_pods_of_a_job_that_its_queue_suspends_do_not_count_as_failed() -> None:
    leaving = {"due": NOW + 120 * SECOND, "grace": 120 * SECOND}
    first, second = ended(0, PREEMPTED, **leaving), on(1, **leaving)
    assert end_of(gang(first, second, suspended=True, queue="gpus")).standing is Standing.SUSPENDED


def test_after_a_queue_resumed_the_job_the_new_pod_of_each_node_counts() -> None:
    old = [ended(index, PREEMPTED, due=NOW) for index in (0, 1)]
    new = [replace(on(index), name=f"new{index}", created=NOW + SECOND) for index in (0, 1)]
    run = gang(*old, *new)
    assert [pod.name for pod in run.on_nodes] == ["new0", "new1"]
    assert end_of(run).standing is Standing.RUNNING
    assert end_of(gang(*old, new[0])).standing is not Standing.FAILED


@pytest.mark.parametrize(
    ("reason", "failure"), [("FailedIndexes", ""), ("DeadlineExceeded", "DeadlineExceeded: Said.")]
)
def test_a_job_that_has_failed_because_of_its_pods_leaves_the_cause_to_them(reason: str, failure: str) -> None:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": "Said."}
    metadata = {"name": "tickets-a1", "creationTimestamp": NOW.isoformat()}
    job = {"metadata": metadata, "spec": {"completions": 2}, "status": {"conditions": [condition]}}
    run = Run.parse(job)
    assert (run.nodes, run.failed, run.failure) == (2, True, failure)


def test_the_index_of_a_pod_is_its_label() -> None:
    metadata = {"name": "p", "creationTimestamp": NOW.isoformat()}
    alone = {"metadata": metadata, "status": {"phase": "Running"}}
    labels = {"batch.kubernetes.io/job-completion-index": "3"}
    assert Pod.parse(alone).index == 0
    assert Pod.parse({**alone, "metadata": {**metadata, "labels": labels}}).index == 3
