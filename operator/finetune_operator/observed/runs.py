"""Reads where one child Job stands: absent, suspended, waiting, running, succeeded or failed, and why, in one sentence.

The trainer's own container decides, not the pod's phase, which sidecars hold up. The Job decides whether a pod that is
being deleted counts: one that was suspended gets another."""

from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason
from finetune_operator.observed.endings import lost, why_failed
from finetune_operator.observed.pods import Pod
from finetune_operator.observed.standing import End, RunStanding, Standing
from finetune_operator.observed.starting import waiting
from finetune_operator.observed.world import Run

LOOK_AGAIN = timedelta(seconds=10)
"""A pod that is refused makes an Event, which nobody watches for."""

LOST_GRACE = timedelta(seconds=60)
"""How long a deleted pod may outstay its grace period: on a node that is gone it stays Running for ever."""

SIDECAR_GRACE = timedelta(seconds=30)
"""How long other containers may go on after the trainer's has ended: a log shipper sends the last lines."""


def assess(run: Run | None, now: datetime, said: End | None = None) -> RunStanding:
    """Where this run stands. The first statement that holds counts. `said`: the failure that its own pod wrote in the
    status, which outlives the pod."""
    if run is None:
        return RunStanding(Standing.ABSENT)
    if run.succeeded:
        return RunStanding(Standing.SUCCEEDED)
    if run.pod is not None and run.pod.trainer_ended and (end := _ended(run, run.pod, now, said)):
        return end
    if run.failed:
        return RunStanding(Standing.FAILED, *_vanished(run, said))
    if run.suspended:
        return RunStanding(Standing.SUSPENDED, _suspended(run))
    if run.pod is None:
        refused = f"The pod of Job {run.name} is refused: {run.refusal}".rstrip(".") + "."
        message = refused if run.refusal else f"Job {run.name} has no pod yet."
        return RunStanding(Standing.WAITING, message, requeue_after=LOOK_AGAIN)
    return _under_way(run.pod, now, said)


def _ended(run: Run, pod: Pod, now: datetime, said: End | None) -> RunStanding | None:
    """Where a run stands whose trainer has ended; None where its pod is thrown away and does not count."""
    left = pod.finished + SIDECAR_GRACE - now if pod.finished and not pod.is_over else timedelta(0)
    if left > timedelta(0) and not pod.is_leaving:
        return RunStanding(Standing.RUNNING, requeue_after=left)
    if pod.trainer_succeeded:
        return RunStanding(Standing.SUCCEEDED)
    # A Job that is suspended deletes its pod, which then ends badly; this shows in the pod before it may in the Job.
    thrown_away = pod.due is not None and not run.failed
    if thrown_away and (run.suspended or (pod.due is not None and now < pod.due + LOST_GRACE)):
        return None
    if run.failure and not pod.termination:
        return RunStanding(Standing.FAILED, *_vanished(run, said))
    message, reason = why_failed(pod, said)
    if pod.lingering:
        message += f" Its pod was removed with its log, because of container {pod.lingering}, which ran on."
    return RunStanding(Standing.FAILED, message, reason)


def _vanished(run: Run, said: End | None) -> End:
    """Why a run failed that has no pod to tell: one that was deleted, or removed by a garbage collector."""
    if said is not None:
        return said
    if run.failure:
        return f"Job {run.name} was ended: {run.failure}".rstrip(".") + ".", FailureReason.EVICTED
    return f"The pod of Job {run.name} was deleted before its work was done.", FailureReason.EVICTED


def _suspended(run: Run) -> str:
    """Who holds the run back, as far as its Job shows."""
    by = f" by {run.suspended_by}" if run.suspended_by else ""
    if run.queue is not None:
        return f"Job {run.name} is suspended{by}: it waits for admission by its queue {run.queue}."
    if run.suspended_by:
        return f"Job {run.name} is suspended{by}: it goes on once its spec.suspend is false."
    return (
        f"Job {run.name} was suspended as it was created, and it names no queue: a queue controller that manages "
        "Jobs without a queue holds it back. Name a queue: for training in the FineTuneJob's label "
        "kueue.x-k8s.io/queue-name, for the preflight in the FineTuneProfile's spec.pods.preflight.queueName."
    )


def _under_way(pod: Pod, now: datetime, said: End | None) -> RunStanding:
    """Of a pod whose trainer has not ended, or that is being deleted."""
    if pod.due is not None and now >= pod.due + LOST_GRACE:
        return RunStanding(Standing.FAILED, *lost(pod, said))
    if pod.due is not None and pod.trainer_ended:
        return RunStanding(Standing.WAITING, f"Pod {pod.name} is being removed.", requeue_after=LOOK_AGAIN)
    if pod.started is not None:
        return RunStanding(Standing.RUNNING, requeue_after=pod.due + LOST_GRACE - now if pod.due else None)
    return waiting(pod, now)
