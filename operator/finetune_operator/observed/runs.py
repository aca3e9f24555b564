"""Finds the state of one child Job (absent, suspended, waiting, running, succeeded or failed) and why, in one sentence.

The trainer's container decides, not the phase of the pod, because sidecars can keep a pod running. The Job decides
whether a pod that is being deleted counts: a Job that was suspended gets another pod."""

from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason
from finetune_operator.observed import gang_ends
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.causes.endings import lost
from finetune_operator.observed.causes.starting import waiting
from finetune_operator.observed.causes.workloads import next_look
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.lost import lost_at
from finetune_operator.observed.facts.lost import next_look as next_look_at_pod
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.standing import End, RunStanding, Standing

LOOK_AGAIN, LOOK_AGAIN_AT_LAST = timedelta(seconds=10), timedelta(minutes=5)
"""First and last interval of checks for a refused pod. A refusal creates only an Event, and the operator does not watch
Events. The interval grows, because a quota can refuse the pods of a thousand jobs for days."""

SIDECAR_GRACE = timedelta(seconds=30)
"""How long other containers may run after the trainer has ended, so that a log shipper can send the last lines."""


def assess(run: Run | None, now: datetime, said: End | None = None, had_all_pods: bool = False) -> RunStanding:
    """Return the state of this run: the first check that matches decides.

    `said`: the failure that the run's own pod wrote in the status, which outlives the pod. `had_all_pods`: the pods of
    all nodes have run, so one that does not exist is gone, and the others decide."""
    if run is None:
        return RunStanding(Standing.ABSENT)
    if run.succeeded:
        return RunStanding(Standing.SUCCEEDED)
    if run.pod is not None and run.pod.trainer_ended and (end := _ended(run, run.pod, now, said)):
        return end
    if run.failed:
        return RunStanding(Standing.FAILED, *_vanished(run, said))
    if run.suspended:
        return _held(run, now)
    if run.pod is None or (run.lacks_pods and not had_all_pods):
        return _without_pod(run, now)
    return _under_way(run.pod, now, said)


def own_failure(run: Run, said: End | None) -> End | None:
    """Return why the trainer of a run has failed, also while other containers or the pods of other nodes still run;
    None if it has not failed, or only because its pod is being removed. `said`: as for `assess`."""
    pod = run.pod
    if pod is None or not pod.trainer_ended or pod.trainer_succeeded or pod.is_leaving:
        return None
    return gang_ends.why_failed(run, pod, said)


def _without_pod(run: Run, now: datetime) -> RunStanding:
    """Return the state of a run of which a pod does not exist. At first this needs no message, because it is normal."""
    waited = now - (run.begun or run.created)
    has = f"{len(run.on_nodes)} of {run.nodes} pods" if run.nodes > 1 else "no pod yet"
    message = "" if waited < LOOK_AGAIN else f"Job {run.name} has {has}."
    if run.refusal:
        message = " ".join((_refused(run), remedies.while_waiting(remedies.of_refusal(run.refusal)))).rstrip()
    interval = min(max(LOOK_AGAIN, waited / 5), LOOK_AGAIN_AT_LAST)
    return RunStanding(Standing.WAITING, message, requeue_after=interval)


def _refused(run: Run) -> str:
    said = run.refusal.rstrip(".")
    return f"The API server refuses the pod of Job {run.name}: {said}."


def _ended(run: Run, pod: Pod, now: datetime, said: End | None) -> RunStanding | None:
    """Return the state of a run whose trainer has ended; None if its pod is being replaced and does not count."""
    left = pod.finished + SIDECAR_GRACE - now if pod.finished and not pod.is_over else timedelta(0)
    if left > timedelta(0) and not pod.is_leaving:
        return RunStanding(Standing.RUNNING, requeue_after=left)
    if (left := gang_ends.until_others_end(run, pod, now)) > timedelta(0):
        return RunStanding(Standing.RUNNING, requeue_after=left)
    if pod.trainer_succeeded:
        return RunStanding(Standing.SUCCEEDED)
    # A suspended Job deletes its pod, which then fails. The pod may show this before the Job does.
    thrown_away = pod.due is not None and not run.failed
    at = lost_at(pod)
    if thrown_away and (run.suspended or (at is not None and now < at)):
        return None
    if run.failure and not pod.termination:
        return RunStanding(Standing.FAILED, *_vanished(run, said))
    message, reason = gang_ends.why_failed(run, pod, said)
    if pod.lingering:
        message += f" The pod and its log were removed, because container {pod.lingering} did not stop."
    return RunStanding(Standing.FAILED, message, reason)


def _vanished(run: Run, said: End | None) -> End:
    """Return why a run failed that has no pod any more, or no Job, for example because somebody deleted it."""
    if said is not None:
        return said
    if run.failure:
        return f"Job {run.name} failed: {run.failure}".rstrip(".") + ".", FailureReason.EVICTED
    what = f"Job {run.name}" if run.is_gone else f"The pod of Job {run.name}"
    return f"{what} was deleted before its work was done.", FailureReason.EVICTED


def _held(run: Run, now: datetime) -> RunStanding:
    """Return the state of a suspended run. What Kueue says about it comes first."""
    if run.hold is None:
        return RunStanding(Standing.SUSPENDED, _suspended(run), reason="Suspended")
    again = next_look(run.suspended_since or run.created, now)
    return RunStanding(
        Standing.SUSPENDED, run.hold.message or _suspended(run), requeue_after=again, reason=run.hold.reason
    )


def _suspended(run: Run) -> str:
    """Return which queue or field manager suspends the run, as far as its Job shows."""
    by = f" by {run.suspended_by}" if run.suspended_by else ""
    if run.queue is not None:
        return f"Job {run.name} is suspended{by} and waits for admission by its queue {run.queue}."
    if run.suspended_by:
        return f"Job {run.name} is suspended{by}. Set spec.suspend of that Job to false to continue."
    return (
        f"Job {run.name} was suspended when it was created, and it has no queue name. A queue controller that manages "
        "Jobs without a queue name never starts it. Set the queue name: for training in the label "
        "kueue.x-k8s.io/queue-name of the FineTuneJob, for the preflight in spec.pods.preflight.queueName of the "
        "FineTuneProfile."
    )


def _under_way(pod: Pod, now: datetime, said: End | None) -> RunStanding:
    """Return the state of a run whose trainer has not ended, or whose pod is being deleted."""
    at = lost_at(pod)
    if at is not None and now >= at:
        return RunStanding(Standing.FAILED, *lost(pod, said))
    if pod.due is not None and pod.trainer_ended:
        return RunStanding(Standing.WAITING, f"Pod {pod.name} is being removed.", requeue_after=LOOK_AGAIN)
    if pod.started is not None:
        return RunStanding(Standing.RUNNING, requeue_after=next_look_at_pod(pod, now))
    return waiting(pod, now)
