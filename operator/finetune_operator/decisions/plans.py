"""Builds the plan of a decision: the status, the Events, and the Jobs that are deleted."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason, finding_of, sentence, with_remedy
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import ConditionType, State
from finetune_operator.decisions import preflights
from finetune_operator.decisions.attempts import records
from finetune_operator.decisions.attempts.records import History
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.decisions.status import outlooks
from finetune_operator.decisions.status.conditions import Outlook, is_written, operator_status
from finetune_operator.observed.causes.workloads import NORMAL_HOLDS
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

UNREADABLE = RunPolicy(max_retries=100, max_interruptions=10_000)
"""Stands for the run policy of a spec that this version cannot read: no limit ends such a job."""
_STAGES = {
    *("PreflightPending", "Validating", "WaitingForGPU", "Training", "Evaluating", "Publishing", "Stopping"),
    *NORMAL_HOLDS,
}
"""Reasons of the condition Ready that every job passes through."""


def proceed(
    world: World,
    outlook: Outlook,
    history: History,
    now: datetime,
    create: list[Object] | None = None,
    requeue_after: timedelta | None = None,
) -> Plan:
    """Return the plan for a job that has not ended. Jobs that must not start a pod again are deleted."""
    ended = [world.attempts[a.number] for a in history.attempts if a.reason and a.number in world.attempts]
    # A sidecar can keep the pod running, and a queue can resume the Job: the preflight would run again.
    is_over = preflights.is_done(world, now) or world.preflight_number in {p.number for p in history.preflights}
    over = world.preflight if is_over else None
    if world.refused_deletion not in outlook.message:
        outlook = replace(outlook, message=f"{outlook.message} {world.refused_deletion}")
    status = operator_status(world, outlook, history, now, create or ())
    return Plan(
        create=create or [],
        delete_jobs=[*live(over, *ended), *_forgotten(world, history)],
        events=_events(world, outlook, history),
        status=None if is_written(world, status) else status,
        requeue_after=requeue_after,
    )


def fail(world: World, history: History, reason: FailureReason | None, message: str, now: datetime) -> Plan:
    """Return the plan that ends the job as failed. Jobs that could still hold resources are deleted."""
    reason = reason or FailureReason.TRAINER_CRASHED
    return _end(world, history, Outlook(State.FAILED, reason, sentence(reason, message), failure=reason), now)


def published(world: World, history: History, now: datetime) -> Plan:
    """Return the plan that ends a job whose results are published. Results that miss a gate are published too."""
    if world.status.evaluation is None or world.status.evaluation.passed is not False:
        return complete(world, history, now)
    reason, evaluated = FailureReason.EVALUATION_GATE_FAILED, world.status.condition(ConditionType.EVALUATED)
    finding = finding_of(reason, evaluated.message) if evaluated else ""
    return fail(world, history, reason, finding, now)  # adds the remedy


def without_results(world: World, history: History, job: str, now: datetime) -> Plan:
    """Return the plan that ends a job whose attempt ended well without results. `job`: name of the attempt's Job.

    The trainer ends with exit code 0 only after it has written status.artifacts."""
    if deletes_unrecorded(world, history):
        return proceed(world, outlooks.stopping(f"Job {job} has ended."), history, now, requeue_after=timedelta(0))
    found = with_remedy(
        f"Job {job} ended with exit code 0, but published no results.",
        "Set spec.trainer.image of the FineTuneProfile to the trainer image of this release.",
    )
    return fail(world, history, FailureReason.TRAINER_CRASHED, found, now)


def complete(world: World, history: History, now: datetime) -> Plan:
    """Return the plan that ends the job as complete."""
    evaluation = world.status.evaluation
    verdict = evaluation.verdict if evaluation else None
    outlook = Outlook(State.COMPLETE, "Succeeded", verdict or "The results are published at spec.output.uri.")
    return _end(world, history, outlook, now)


def _end(world: World, history: History, outlook: Outlook, now: datetime) -> Plan:
    closed = history.closed(now)
    policy = world.spec.policy if world.spec else UNREADABLE
    keep = policy.keep_checkpoints if outlook.failure else None
    timers = [seconds for seconds in (policy.ttl_seconds_after_finished, keep) if seconds is not None]
    return Plan(
        delete_jobs=live(world.preflight, *world.attempts.values()),
        events=_events(world, outlook, history),
        status=operator_status(world, outlook, closed, now),
        is_final=True,
        requeue_after=timedelta(seconds=min(timers)) if timers else None,
    )


def deletes_unrecorded(world: World, history: History) -> bool:
    """Whether a plan that ends the job would delete a Job whose end is not on record yet, for example because a sidecar
    keeps its pod running. The end must be written first: if the operator stopped in between, the Job would only be
    gone, and the work would be done again."""
    ended = {record.number for record in history.attempts if record.reason is not None}
    ended -= {record.number for record in world.status.attempts or () if record.reason is not None}
    failed = {record.number for record in history.preflights}
    failed -= {record.number for record in world.status.preflights or ()}
    attempts = (run for number, run in world.attempts.items() if number in ended)
    return bool(live(*attempts, world.preflight if world.preflight_number in failed else None))


def live(*runs: Run | None) -> list[str]:
    """Return the names of those Jobs that can still start or hold a pod."""
    return [run.name for run in runs if run is not None and run.is_live]


def _forgotten(world: World, history: History) -> list[str]:
    """Return the names of the Jobs of attempts that the status no longer records. The others stay for their logs."""
    recorded = {attempt.number for attempt in records.kept(history.attempts) or []}
    return [run.name for number, run in world.attempts.items() if number not in recorded and not run.is_live]


def _events(world: World, outlook: Outlook, history: History) -> list[Event]:
    """Return an Event if the job ends, is tried again, or begins to wait for somebody to act. Stages are in the status
    only."""
    ready = world.status.condition(ConditionType.READY)
    if outlook.reason in _STAGES or (ready is not None and ready.reason == outlook.reason):
        return []
    # A job can be suspended, resumed and suspended again, and its budget can be raised and reached again.
    occurrence = f"{world.generation}/{history.counts.attempts}/{len(history.preflights)}"
    return [Event("Warning" if outlook.failure else "Normal", outlook.reason, outlook.message, occurrence)]
