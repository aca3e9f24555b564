"""When the checkpoints of a failed job are deleted, and how it is told. The state of the job never changes."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_api.status.job import Condition, ConditionType
from finetune_operator.decisions.attempts.usage import has_ended
from finetune_operator.decisions.objects import bundles, children, claims
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.decisions.status.conditions import seen_again
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.runs import assess
from finetune_operator.observed.standing import RunStanding, Standing
from finetune_operator.observed.world import World

LOOK_AGAIN = timedelta(minutes=1)
"""Interval of checks for pods that still stop."""
LOOK_AGAIN_AT_LAST = timedelta(hours=1)
"""Interval of checks for what starts no decision by itself: a spec or a profile that this version cannot read."""
DEADLINE = "DeadlineExceeded"
"""Reason of a Job's condition Failed at its activeDeadlineSeconds."""
REMEDY = "Delete this folder yourself, or let the lifecycle rule of the bucket do it: see docs/install.md."
REMEDY_IN_A_CLAIM = "Delete this folder yourself: nothing else deletes files of a volume."
CLAIM_GONE = "ClaimGone"
"""Reason of the condition of a job whose temporary objects went with their claim."""


def next_step(world: World, now: datetime) -> Plan:
    """Return the plan for the checkpoints that a job which has ended may have left; an empty one if there are none."""
    if world.ended_at is None or world.keep is None:
        return Plan()
    if world.cleanup is not None:
        return _follow(world, world.cleanup, now)
    left = world.ended_at + world.keep - now
    if left > timedelta(0):
        return Plan(requeue_after=left)
    if any(not has_ended(pod, now) for pod in world.trainers):
        return Plan(requeue_after=LOOK_AGAIN)  # a pod that stops stores a checkpoint
    if not world.cleanup_has_turn:
        return Plan(requeue_after=_turn(world.uid))
    if gone := _gone(world):
        return _told(world, True, CLAIM_GONE, gone, now)
    if world.spec is None or world.profile is None or world.bundle_error:
        return Plan(requeue_after=LOOK_AGAIN_AT_LAST)
    bundle = bundles.missing(world, world.spec, world.profile)  # in case that somebody deleted it
    job = children.cleanup_job(world, world.spec, world.profile)
    return Plan(create=[*children.groundwork(world, world.spec), *bundle, job])


def end_of(run: Run, now: datetime) -> RunStanding | None:
    """Return how a cleanup ended; None if it has not.

    Its container decides, because a sidecar can keep the pod running. Kubernetes repeats a pod that has failed. It
    cannot repeat one that a sidecar keeps running."""
    found = assess(run, now)
    failed = found.standing is Standing.FAILED and (run.failed or _hangs(run))
    return found if failed or found.standing is Standing.SUCCEEDED else None


def _hangs(run: Run) -> bool:
    return run.pod is not None and bool(run.pod.lingering) and not run.pod.is_leaving


def _follow(world: World, run: Run, now: datetime) -> Plan:
    """Return the plan for a cleanup that exists. Its end starts the next decision."""
    gone, end = _gone(world), end_of(run, now)
    if not (end or gone):
        left = assess(run, now).requeue_after if run.pod and run.pod.trainer_ended else None
        return Plan(requeue_after=left or LOOK_AGAIN_AT_LAST)
    if "conditions" not in world.raw_status:
        return Plan(requeue_after=LOOK_AGAIN)  # the job has ended between the look at the store and this decision
    if end is None:
        return replace(_told(world, True, CLAIM_GONE, gone or "", now), delete_jobs=[run.name])
    live = [run.name] if run.is_live else []  # a sidecar would keep the turn of another cleanup
    if end.standing is Standing.SUCCEEDED:
        said = run.pod.termination.message if run.pod and run.pod.termination else "The temporary objects were deleted."
        return replace(_told(world, True, "Deleted", said, now), delete_jobs=live)
    folder = f"{names.WORK_FOLDER}/{world.uid}/ below spec.output.uri"
    remedy = REMEDY_IN_A_CLAIM if world.spec and claims.output_of(world.spec) else REMEDY
    message = f"The temporary objects in {folder} were not deleted. {_cause(world, run, end)} {remedy}"
    return replace(_told(world, False, "CleanupFailed", message, now), delete_jobs=live)


def _cause(world: World, run: Run, end: RunStanding) -> str:
    """Return why a cleanup failed. At its deadline Kubernetes deletes the pod, which could show it."""
    told = run.pod.termination if run.pod else None
    is_stopped = told is None or told.reason == FailureReason.PREEMPTED
    if not (is_stopped and run.failure.startswith(DEADLINE)):
        return end.message
    return (
        f"Job {run.name} had not ended when its time was over (activeDeadlineSeconds, {children.CLEANUP_SECONDS} s). "
        "Its pod could not start, for example because of a quota or an image, or the storage was too slow: "
        f"kubectl get events --namespace {world.namespace} shows the cause for about an hour."
    )


def _gone(world: World) -> str | None:
    """Return that the temporary objects went with the claim of the output; None if they did not."""
    found = claims.gone_output(world.spec, world.namespace, world.claims) if world.spec else None
    return found and (
        f"{found} The temporary objects were in its volume, so there is nothing to delete. If the volume was retained, "
        f"delete {names.WORK_FOLDER}/{world.uid}/ below spec.output.uri there."
    )


def _told(world: World, deleted: bool, reason: str, message: str, now: datetime) -> Plan:
    """Return the plan that records how the cleanup ended, so that it is never repeated."""
    condition = Condition(
        type=ConditionType.CHECKPOINTS_DELETED,
        status="True" if deleted else "False",
        reason=reason,
        message=message,
        observed_generation=world.generation,
        last_transition_time=now,
    )
    status = seen_again(world)
    status["conditions"] = [*status["conditions"], condition.model_dump(mode="json", by_alias=True, exclude_none=True)]
    events = [] if deleted else [Event("Warning", reason, message)]
    return Plan(events=events, status=status, requeue_after=timedelta(0))


def _turn(uid: str) -> timedelta:
    """Return when a job asks again for its turn: after 30 s to 90 s, so that thousands do not ask together."""
    return timedelta(seconds=30 + int(uid[:8], 16) % 61)
