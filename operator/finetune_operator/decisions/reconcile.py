"""Decides the next action for one FineTuneJob. Pure: the same world and time give the same plan."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.reasons import FailureReason, finding_of, sentence, with_remedy
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import ConditionType, State
from finetune_operator.decisions import admission, children, outlooks, preflights
from finetune_operator.decisions.aftermath import after_the_end
from finetune_operator.decisions.attempts import limits, placement, records, retries, silence, usage
from finetune_operator.decisions.attempts.records import History
from finetune_operator.decisions.conditions import Outlook, is_written, operator_status
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed.pods import Object, Pod
from finetune_operator.observed.runs import LOST_GRACE
from finetune_operator.observed.standing import RunStanding, Standing
from finetune_operator.observed.workloads import NORMAL_HOLDS
from finetune_operator.observed.world import Run, World

_STAGES = {
    *("PreflightPending", "Validating", "WaitingForGPU", "Training", "Evaluating", "Publishing", "Stopping"),
    *NORMAL_HOLDS,
}
"""Reasons of the condition Ready that every job passes through."""
NOW_AGAIN = timedelta(0)
_UNREADABLE = RunPolicy(max_retries=100, max_interruptions=10_000)
"""Stands for the run policy of a spec that this version cannot read: no limit ends such a job."""


def reconcile(world: World, now: datetime) -> Plan:
    """Return the plan for the job: a checklist in which the first item that is not done decides."""
    if world.deleting:
        return Plan()  # the garbage collector removes the children of a deleted job
    if world.is_over:
        return after_the_end(world, now)

    history = records.history(world, now)
    last = history.last
    is_running = history.standing.standing in (Standing.RUNNING, Standing.WAITING)
    if world.status.artifacts is not None and not is_running:
        return _published(world, history, now)  # also if the attempt was stopped after it had published
    if last is not None and last.reason == records.SUCCEEDED:
        return _complete(world, history, now)

    stop = limits.stop(world, history, now)
    if stop is not None and history.is_interrupted:
        return _stop(world, records.stopped(world, history, stop.reason, stop.message, now), now)
    if last is not None and last.reason is None:
        return _follow(world, history, now)
    if last is not None and (end := _end_of_retries(world, history, now)) is not None:
        return end
    if stop is not None:
        return _hold(world, history, stop, now)

    obstacle = admission.obstacle(world, now)
    if obstacle is not None and obstacle.final:
        found = with_remedy(obstacle.finding, obstacle.remedy) if obstacle.remedy else obstacle.finding
        return _fail(world, history, FailureReason.SPEC_INVALID, found, now)
    if obstacle is not None or world.spec is None or world.profile is None:
        outlook = Outlook(State.PENDING, "WaitingForDependency", obstacle.while_waiting if obstacle else "")
        return _proceed(world, outlook, history, now, requeue_after=admission.LOOK_AGAIN)

    if preflights.assess_one(world, now).standing is not Standing.SUCCEEDED:
        return _validate(world, world.spec, world.profile, history, now)
    return _train(world, world.spec, world.profile, history, now)


def refused(world: World, message: str, now: datetime) -> Plan:
    """Return the plan that replaces one with an object that the API server refused. Its status tells the tenant why.
    The status of a job that has ended stays, and an Event tells it.

    The refused plan is tried again with growing pauses."""
    if world.is_over:
        return Plan(events=[Event("Warning", "CleanupRefused", message)])
    history = records.history(world, now)
    return _proceed(world, Outlook(State.PENDING, "CreationRefused", message), history, now)


def _follow(world: World, history: History, now: datetime) -> Plan:
    """Return the plan for a job whose attempt exists and has not ended.

    The attempt reads only its bundle, so a changed or deleted profile does not stop it."""
    record, attempt = history.attempts[-1], history.standing
    run = records.run_of(world, record)
    if finding := placement.without_a_node(record, run, now):
        stuck = records.stopped(world, history, FailureReason.GPU_FAULT, finding, now)
        return _fail(world, stuck, FailureReason.GPU_FAULT, finding, now)
    if finding := silence.silent(world, record.number, run, attempt, now):
        stalled = records.stopped(world, history, FailureReason.TRAINING_STALLED, finding, now)
        return _proceed(world, outlooks.stopping(finding), stalled, now, requeue_after=NOW_AGAIN)
    create = children.groundwork(world, world.spec) if world.spec is not None else []
    if _lacks_bundle(world, run) and world.spec is not None and world.profile is not None:
        create.append(children.bundle_config_map(world, world.spec, world.profile))
    outlook = outlooks.training(record, attempt, records.stage_of(world, record))
    looks = (
        attempt.requeue_after,
        limits.next_look(world, history, now),
        placement.look_again(record, run, now),
        silence.silent_in(world, record.number, run, attempt, now),
    )
    return _proceed(
        world, outlook, history, now, create, min((look for look in looks if look is not None), default=None)
    )


def _stop(world: World, history: History, now: datetime) -> Plan:
    """Return the plan that stops the running attempt, whose record names the cause. Its pod stores a checkpoint."""
    record = history.attempts[-1]
    stop = limits.Stop(record.reason or "", record.message or "")
    outlook = outlooks.stopping(stop.message) if stop.ends_the_job else outlooks.suspended(stop)
    return _proceed(world, outlook, history, now, requeue_after=NOW_AGAIN)


def _hold(world: World, history: History, stop: limits.Stop, now: datetime) -> Plan:
    """Return the plan for a job that must not run and has no running attempt."""
    if stop.ends_the_job:
        return _fail(world, history, FailureReason.DEADLINE_EXCEEDED, stop.message, now)
    plan = _proceed(world, outlooks.suspended(stop), history, now, requeue_after=_until_gone(world, history, now))
    return replace(plan, delete_jobs=_live(world.preflight, *world.attempts.values()))


def _end_of_retries(world: World, history: History, now: datetime) -> Plan | None:
    """Return the plan that ends a job whose last attempt is not retried; None if it is."""
    policy = world.spec.policy if world.spec else _UNREADABLE
    verdict = retries.after_attempt(history.attempts, history.counts, policy, now)
    if not isinstance(verdict, retries.GiveUp):
        return None
    if verdict.reason is FailureReason.DEADLINE_EXCEEDED and (left := _until_gone(world, history, now)) is not None:
        return _proceed(world, outlooks.stopping(verdict.finding), history, now, requeue_after=left)
    return _fail(world, history, verdict.reason, verdict.finding, now)


def _validate(
    world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, history: History, now: datetime
) -> Plan:
    """Return the plan for a job whose preflight has not succeeded."""
    found = preflights.assess_one(world, now)
    if found.standing is Standing.FAILED:
        history = preflights.with_failure(world, history, found, now)
        verdict = retries.after_preflight(history.preflights, history.counts, spec.policy, now)
        if isinstance(verdict, retries.GiveUp):
            return _fail(world, history, verdict.reason, verdict.finding, now)
        if not preflights.is_recorded(world, history) or now < verdict.at:
            pause = max(verdict.at - now, NOW_AGAIN)
            outlook = outlooks.retrying(history.preflights[-1], "Preflight", verdict.at, now)
            return _proceed(world, outlook, history, now, requeue_after=pause)
        found = RunStanding(Standing.ABSENT)
        history = replace(history, preflight=preflights.next_number(world))
    create = children.groundwork(world, spec)
    if found.standing is Standing.ABSENT or _lacks_bundle(world, world.preflight):
        create.append(children.bundle_config_map(world, spec, profile))
    if found.standing is Standing.ABSENT:
        create.append(children.preflight_job(world, spec, profile, preflights.next_number(world)))
    plan = _proceed(world, outlooks.validating(found), history, now, create, found.requeue_after)
    # A preflight that existed is also absent if the job is deleted with its children, and the watch of jobs is late.
    return replace(plan, is_final=found.standing is Standing.ABSENT and world.status.state is not None)


def _train(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, history: History, now: datetime) -> Plan:
    """Return the plan for a job whose preflight has succeeded and that has no running attempt."""
    last, avoided = history.last, list[str]()
    if last is None:
        if owner := admission.owner_of_output(world):
            return _fail(world, history, FailureReason.OUTPUT_OCCUPIED, owner, now)
    else:
        verdict = retries.after_attempt(history.attempts, history.counts, spec.policy, now)
        assert isinstance(verdict, retries.Again)  # `_end_of_retries` has looked
        outlook = outlooks.retrying(last, "Attempt", verdict.at, now, _held(world, history, now))
        if not history.is_recorded or _live(*world.attempts.values()):
            return _proceed(world, outlook, history, now, requeue_after=NOW_AGAIN)  # deletes them first
        if (left := _until_gone(world, history, now)) is not None:
            return _proceed(world, outlook, history, now, requeue_after=left)
        if now < verdict.at:
            limit = limits.next_look(world, history, now)
            pause = min(verdict.at - now, limit) if limit else verdict.at - now
            return _proceed(world, outlook, history, now, requeue_after=pause)
        avoided = verdict.avoided
    number = last.number + 1 if last else 1
    halvings = retries.halvings(history.counts)
    job = children.attempt_job(world, spec, profile, children.Try(number, halvings, tuple(avoided)))
    begun = history.begun(records.new(world, number, avoided))
    outlook = outlooks.training(begun.attempts[-1], RunStanding(Standing.ABSENT), "Training")
    plan = _proceed(world, outlook, begun, now, [*children.groundwork(world, spec), job])
    return replace(plan, is_final=True)


def _until_gone(world: World, history: History, now: datetime) -> timedelta | None:
    """Return when to look again for pods of earlier attempts that have not ended; None if there are none."""
    held = _held(world, history, now)
    looks = [pod.due + LOST_GRACE - now for pod in held if pod.due is not None]
    return min(looks, default=admission.LOOK_AGAIN) if held else None


def _held(world: World, history: History, now: datetime) -> list[Pod]:
    """Return the pods of earlier attempts that have not ended. There is never more than one trainer.

    A pod on a lost node can exist for ever, so it counts only for a while."""
    runs = [*world.attempts.values(), *(records.run_of(world, attempt) for attempt in history.attempts)]
    return [pod for run in runs for pod in run.pods if not usage.has_ended(pod, now)]


def _lacks_bundle(world: World, run: Run | None) -> bool:
    """Whether the pod cannot start because somebody deleted the bundle, as the kubelet reports it."""
    event = run.pod.event if run and run.pod else None
    name = names.child_prefix(world.name, world.uid)
    return event is not None and f'configmap "{name}" not found' in event.message


def _proceed(
    world: World,
    outlook: Outlook,
    history: History,
    now: datetime,
    create: list[Object] | None = None,
    requeue_after: timedelta | None = None,
) -> Plan:
    status = operator_status(world, outlook, history, now)
    ended = [world.attempts[a.number] for a in history.attempts if a.reason and a.number in world.attempts]
    # A sidecar can keep the pod running, and a queue can resume the Job: the finished preflight would run again.
    done = world.preflight if preflights.is_done(world, now) else None
    return Plan(
        create=create or [],
        delete_jobs=[*_live(done, *ended), *_forgotten(world, history)],
        events=_events(world, outlook, history),
        status=None if is_written(world, status) else status,
        requeue_after=requeue_after,
    )


def _fail(world: World, history: History, reason: FailureReason | None, message: str, now: datetime) -> Plan:
    """Return the plan that ends the job as failed. Jobs that could still hold resources are deleted."""
    reason = reason or FailureReason.TRAINER_CRASHED
    return _end(world, history, Outlook(State.FAILED, reason, sentence(reason, message), failure=reason), now)


def _published(world: World, history: History, now: datetime) -> Plan:
    """Return the plan that ends a job whose results are published. Results that miss a gate are published too."""
    if world.status.evaluation is None or world.status.evaluation.passed is not False:
        return _complete(world, history, now)
    reason, evaluated = FailureReason.EVALUATION_GATE_FAILED, world.status.condition(ConditionType.EVALUATED)
    finding = finding_of(reason, evaluated.message) if evaluated else ""
    return _fail(world, history, reason, finding, now)  # adds the remedy


def _complete(world: World, history: History, now: datetime) -> Plan:
    evaluation = world.status.evaluation
    verdict = evaluation.verdict if evaluation else None
    outlook = Outlook(State.COMPLETE, "Succeeded", verdict or "The results are published at spec.output.uri.")
    return _end(world, history, outlook, now)


def _end(world: World, history: History, outlook: Outlook, now: datetime) -> Plan:
    closed = history.closed(now)
    policy = world.spec.policy if world.spec else _UNREADABLE
    keep = policy.keep_checkpoints if outlook.failure else None
    timers = [seconds for seconds in (policy.ttl_seconds_after_finished, keep) if seconds is not None]
    return Plan(
        delete_jobs=_live(world.preflight, *world.attempts.values()),
        events=_events(world, outlook, history),
        status=operator_status(world, outlook, closed, now),
        is_final=True,
        requeue_after=timedelta(seconds=min(timers)) if timers else None,
    )


def _live(*runs: Run | None) -> list[str]:
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
    again = f"{history.counts.attempts}/{len(history.preflights)}" if outlook.reason == outlooks.RETRYING else ""
    return [Event("Warning" if outlook.failure else "Normal", outlook.reason, outlook.message, again)]
