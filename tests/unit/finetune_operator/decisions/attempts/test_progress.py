"""The limit on interruptions in a row without progress holds for any number of attempts, also unlisted ones."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.attempts import RECORDED, Attempt, Counts, Reach
from finetune_operator.decisions.attempts import progress
from finetune_operator.observed.facts.pods import Pod, PodCondition
from finetune_operator.observed.world import Progress
from tests.unit.finetune_operator.decisions.simulation import ARTIFACTS, Cluster


class Interrupted:
    """A job whose preflight has succeeded, and whose attempts are interrupted one after another."""

    def __init__(self, retries: int) -> None:
        self.cluster = Cluster()
        self.cluster.spec = self.cluster.spec.model_copy(update={"run_policy": RunPolicy(max_retries=retries)})
        self.cluster.settle()
        self.cluster.start(self.cluster.pods()[0], "n0")
        self.cluster.says(self.cluster.pods()[0], "Validated", "True", "Valid", timedelta(0))
        self.cluster.end(self.cluster.pods()[0], 0)

    def next_pod(self) -> Pod:
        for _ in range(5):
            pause = self.cluster.settle()
            if pods := self.cluster.pods():
                return pods[0]
            self.cluster.now += pause or timedelta(seconds=1)
        raise AssertionError(f"no attempt follows: {self.cluster.status}")

    def interrupt(self, step: int = 5, checkpoint: int | None = None, times: int = 1) -> None:
        """Attempts that take steps and are preempted. `checkpoint`: the last one that each has stored."""
        for _ in range(times):
            pod = self.cluster.start(self.next_pod(), "n1")
            number = self.cluster.number_of(pod)
            self.cluster.progress = Progress(number, step=step, checkpoint_step=checkpoint)
            disruption = PodCondition("True", "PreemptionByScheduler", "", self.cluster.now)
            self.cluster.end(pod, 143, conditions={**pod.conditions, "DisruptionTarget": disruption})
            self.cluster.settle()

    def train(self, step: int, checkpoint: int | None = None) -> Pod:
        """Let the next attempt take steps."""
        pod = self.cluster.start(self.next_pod(), "n1")
        self.cluster.now += timedelta(minutes=1)
        self.cluster.progress = Progress(self.cluster.number_of(pod), step=step, checkpoint_step=checkpoint)
        self.cluster.settle()
        return pod

    def delete_job(self, pod: Pod, cascades: bool = True) -> Pod:
        """Somebody deletes the Job of the pod. Return the pod as it is then."""
        job = self.cluster.job_of(pod)
        assert job is not None
        self.cluster.delete_job(job.name, cascades)
        self.cluster.settle()
        return self.cluster.pods()[0]

    def stop(self, pod: Pod, checkpoint: int | None = None) -> None:
        """The pod ends as it was asked to. `checkpoint`: the one that it stores before, if any."""
        message = TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", checkpoint_step=checkpoint)
        ended = self.cluster.end_trainer(pod, 33, termination=message)
        self.cluster.settle()
        self.cluster.vanish(ended)
        self.cluster.settle()

    def suspend(self, yes: bool) -> None:
        self.cluster.spec = self.cluster.spec.model_copy(update={"suspend": yes})
        self.cluster.generation += 1
        self.cluster.settle()

    def train_until_the_night(self, checkpoint: int) -> None:
        """An attempt is suspended, stores its only checkpoint while it stops, and the job is resumed hours later."""
        self.train(step=checkpoint)
        self.suspend(True)
        self.stop(self.cluster.pods()[0], checkpoint)
        self.cluster.now += timedelta(hours=10)
        self.suspend(False)

    def refuse(self, node: str = "n1") -> None:
        """The kubelet of this node refuses the next pod. Such a pod has no conditions."""
        said = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed due to unhealthy devices"}
        self.cluster.change(self.next_pod(), phase="Failed", node_name=node, conditions={}, **said)
        self.cluster.settle()

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(self.cluster.status["attempts"])

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.cluster.status["counts"])

    @property
    def ready(self) -> dict[str, Any]:
        return dict(next(c for c in self.cluster.status["conditions"] if c["type"] == "Ready"))


@pytest.mark.parametrize("retries", [0, 3, 9, 10, 11, 20])
def test_more_interruptions_in_a_row_without_progress_than_retries_end_the_job(retries: int) -> None:
    job = Interrupted(retries)

    job.interrupt(times=retries)
    assert not job.cluster.is_over
    job.interrupt()

    assert job.cluster.is_over
    assert job.counts["attempts"] == job.counts["inVain"] == retries + 1
    assert f"allows {retries} interruptions in a row without progress" in job.ready["message"]


def test_progress_lets_the_count_begin_anew_also_after_more_attempts_than_the_status_lists() -> None:
    job = Interrupted(20)

    job.interrupt(times=15)
    job.interrupt(checkpoint=5)
    assert "inVain" not in job.counts
    job.interrupt(checkpoint=5, times=20)

    assert not job.cluster.is_over
    job.interrupt(checkpoint=5)
    assert job.cluster.is_over


def test_an_attempt_that_repeats_what_a_forgotten_one_had_done_makes_no_progress() -> None:
    """The storage has lost the checkpoints of the first attempt."""
    job = Interrupted(12)

    job.interrupt(checkpoint=100)
    job.interrupt(checkpoint=None, times=RECORDED)
    assert job.next_pod()
    assert 1 not in {record["number"] for record in job.cluster.status["attempts"]}
    assert job.counts["forgotten"] == {"stage": "Training", "checkpointStep": 100}
    job.interrupt(checkpoint=50)

    assert job.cluster.status["attempts"][-1]["progressed"] is False
    assert job.counts["inVain"] == RECORDED + 1


def test_a_status_without_a_count_goes_on_with_that_of_its_records() -> None:
    """An earlier version of the operator has written it."""
    job = Interrupted(4)
    job.interrupt(times=3)
    del job.cluster.status["counts"]["inVain"]

    job.interrupt()
    assert job.counts["inVain"] == 4
    job.interrupt()
    assert job.cluster.is_over


def test_a_checkpoint_that_a_pod_stores_while_it_stops_is_progress() -> None:
    """The Job of each attempt is deleted before its first periodic checkpoint."""
    job = Interrupted(1)

    for number in range(1, 6):
        pod = job.delete_job(job.train(step=20 * number))
        assert job.records[-1]["progressed"] is False
        job.stop(pod, checkpoint=20 * number)

    assert [record["progressed"] for record in job.records[:5]] == [True] * 5
    assert "inVain" not in job.counts


@pytest.mark.parametrize("checkpoint", [None, 20])
def test_a_job_is_given_up_only_after_its_last_pod_has_stopped(checkpoint: int | None) -> None:
    job = Interrupted(0)
    pod = job.delete_job(job.train(step=20))
    job.cluster.now += timedelta(seconds=30)
    job.cluster.settle()
    assert (job.cluster.is_over, job.ready["reason"]) == (False, "Stopping")
    assert job.ready["message"].endswith(f"The job waits for the end of pod {pod.name}.")

    job.stop(pod, checkpoint)

    (first, *others) = job.records
    assert (first["reason"], first["gpuSeconds"], first.get("checkpointStep")) == ("Evicted", 90, checkpoint)
    assert (job.cluster.is_over, len(others)) == ((True, 0) if checkpoint is None else (False, 1))


def test_a_pod_that_was_left_behind_may_complete_a_job_that_would_be_given_up() -> None:
    """kubectl delete job --cascade=orphan."""
    job = Interrupted(0)
    pod = job.delete_job(job.train(step=20), cascades=False)
    job.cluster.now += timedelta(hours=1)
    job.cluster.settle()
    assert (job.cluster.is_over, pod.is_leaving) == (False, False)
    assert job.ready["message"].endswith(f"To end it: kubectl delete pod {pod.name}.")

    job.cluster.parts["artifacts"] = ARTIFACTS
    job.cluster.end(pod, 0)
    job.cluster.settle()

    assert job.cluster.status["state"] == "Complete"


def test_a_pod_that_was_left_behind_and_starts_late_may_get_further() -> None:
    job = Interrupted(0)
    pod = job.delete_job(job.next_pod(), cascades=False)
    assert "progressed" not in job.records[0]

    pod = job.cluster.start(pod, "n1")
    job.cluster.progress = Progress(1, step=20)
    job.cluster.settle()
    job.stop(pod, checkpoint=20)

    assert (job.records[0]["progressed"], job.counts["attempts"]) == (True, 2)


def test_a_checkpoint_counts_also_if_the_operator_did_not_see_the_pod_run() -> None:
    job = Interrupted(0)
    pod = job.next_pod()
    job.cluster.operator_is_up = False
    pod = job.delete_job(job.cluster.start(pod, "n1"))
    job.cluster.progress = Progress(1, step=20, checkpoint_step=20)
    job.cluster.end(pod, 33)
    job.cluster.operator_is_up = True
    job.cluster.settle()

    assert (job.records[0]["progressed"], job.counts["attempts"]) == (True, 2)


def test_progress_of_an_attempt_that_was_suspended_lets_the_count_begin_anew() -> None:
    """Each morning an attempt is lost before its first checkpoint."""
    job = Interrupted(1)

    for day in range(1, 5):
        job.interrupt()
        assert job.counts["inVain"] == 1
        job.train_until_the_night(checkpoint=1000 * day)
        assert "inVain" not in job.counts

    assert not job.cluster.is_over


def test_a_suspension_without_progress_does_not_let_the_count_begin_anew() -> None:
    job = Interrupted(1)

    for _ in range(2):
        job.interrupt()
        job.train(step=5)
        job.suspend(True)
        job.suspend(False)
        if job.cluster.pods():
            job.stop(job.cluster.pods()[0])

    assert job.cluster.is_over


def test_a_node_that_refuses_a_pod_each_morning_is_not_avoided() -> None:
    job = Interrupted(1)

    for day in range(1, 5):
        job.refuse("n1")
        job.train_until_the_night(checkpoint=1000 * day)
    job.next_pod()

    assert [record.get("avoidedNodes") for record in job.records] == [None] * 9


def test_attempts_that_a_node_refuses_are_bounded_and_its_second_refusal_is_its_last() -> None:
    job = Interrupted(3)

    job.refuse("n1")
    assert "avoidedNodes" not in job.cluster.status["attempts"][-1]
    assert (job.next_pod(), job.cluster.status["attempts"][0]["nodeName"]) != (None, None)
    job.refuse("n1")
    job.next_pod()
    assert job.cluster.status["attempts"][-1]["avoidedNodes"] == ["n1"]
    job.refuse("n2")
    job.refuse("n2")

    assert job.cluster.is_over
    assert (job.ready["reason"], job.counts["inVain"]) == (FailureReason.NODE_FAULT, 4)
    assert "Node n2 refused the pod: UnexpectedAdmissionError: Allocate failed" in job.ready["message"]


def test_a_pod_that_is_refused_after_its_node_was_restarted_has_ended_and_the_next_attempt_follows() -> None:
    """The kubelet replaces the status of a pod that has trained."""
    job = Interrupted(3)
    trains = job.cluster.start(job.next_pod(), "n1")
    job.cluster.settle()
    job.cluster.now += timedelta(hours=1)
    said = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed due to no healthy devices present"}
    job.cluster.change(trains, phase="Failed", conditions={}, started=None, **said)

    assert job.next_pod().name != trains.name
    (first, _) = job.cluster.status["attempts"]
    assert (first["reason"], first["nodeName"], first["gpuSeconds"]) == ("NodeFault", "n1", 3600)
    assert "completionTime" in first


def test_a_node_that_refuses_a_pod_now_and_then_is_not_avoided() -> None:
    """A kubelet refuses pods for a moment after each restart of its node."""
    job = Interrupted(3)

    for number in range(1, 8):
        job.refuse("n1")
        job.interrupt(checkpoint=number)
    job.next_pod()

    assert [record.get("avoidedNodes") for record in job.cluster.status["attempts"]] == [None] * RECORDED


def test_a_preflight_that_nodes_refuse_is_bounded() -> None:
    cluster = Cluster()
    cluster.spec = cluster.spec.model_copy(update={"run_policy": RunPolicy(max_retries=12)})
    for _ in range(200):
        pause = cluster.settle()
        for pod in cluster.pods():
            cluster.change(pod, phase="Failed", node_name="n1", reason="UnexpectedAdmissionError")
        cluster.now += pause or timedelta(0)

    assert cluster.is_over
    assert cluster.status["counts"]["preflightReasons"] == {"NodeFault": 13}


def record(number: int, reason: str = "Preempted", **fields: Any) -> Attempt:
    return Attempt(number=number, name=f"a{number}", reason=reason, **fields)


VAIN = {"progressed": False, "stage": "Training", "last_step": 5}


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (record(9, **VAIN), 8),
        (record(9), 7),
        (record(9, "Evicted", progressed=False), 7),
        (record(9, "NodeFault"), 8),
        (record(9, "NodeFault", progressed=False), 8),
        (record(9, "Suspended", **VAIN), 7),
        (record(9, "Suspended", progressed=True), 0),
        (record(9, "CostUnknown", progressed=True), 0),
        (record(9, progressed=True), 0),
        (record(9, "Killed", **VAIN), 0),
    ],
    ids=[
        "vain",
        "never ran",
        "before its first step",
        "refused",
        "not started",
        "suspended",
        *["stopped"] * 2,
        "progress",
        "a retry",
    ],
)
def test_what_an_end_does_to_the_count(end: Attempt, number: int) -> None:
    assert progress.in_vain(Counts(in_vain=7), [], [end]) == number
    assert progress.in_vain(Counts(in_vain=7), [end], [end]) == 7, "its end is counted already"


@pytest.mark.parametrize(
    ("then", "now", "number"),
    [
        (record(9, **VAIN), record(9, progressed=True), 0),
        (record(9, "Suspended", **VAIN), record(9, "Suspended", progressed=True), 0),
        (record(9, progressed=False), record(9, **VAIN), 8),
        (record(9, progressed=True), record(9, progressed=True), 7),
    ],
    ids=["a checkpoint", "a checkpoint after a suspension", "a first step", "nothing"],
)
def test_what_a_pod_does_while_it_stops_still_counts(then: Attempt, now: Attempt, number: int) -> None:
    assert progress.in_vain(Counts(in_vain=7), [then], [now]) == number


def test_the_reach_of_forgotten_attempts_only_grows() -> None:
    before = Reach(stage="Training", checkpoint_step=90, kept_results=3)
    late = record(1, stage="Evaluating", checkpoint_step=80, kept_results=2)

    assert progress.forgotten(before, [late]) == Reach(stage="Evaluating", checkpoint_step=80, kept_results=3)
    assert progress.forgotten(before, []) == before
    assert progress.forgotten(None, []) is None
    assert progress.forgotten(None, [record(1, stage="Training", last_step=9)]) is None
