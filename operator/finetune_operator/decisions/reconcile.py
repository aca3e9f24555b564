"""Decides the next action for one FineTuneJob. Pure: the same world and time give the same plan."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason, with_remedy
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.attempts import Attempt
from finetune_api.status.job import State
from finetune_operator.decisions import admission, gpu_choice, plans, preflights
from finetune_operator.decisions.aftermath import after_the_end
from finetune_operator.decisions.attempts import gathering, limits, placement, records, retries, silence, usage
from finetune_operator.decisions.attempts.records import History
from finetune_operator.decisions.objects import bundles, children, claims, gangs, model_cache
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.decisions.status import out_of_memory, outlooks
from finetune_operator.decisions.status.conditions import Outlook
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.facts.lost import next_look
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.standing import RunStanding, Standing
from finetune_operator.observed.world import World

NOW_AGAIN = timedelta(0)


def reconcile(world: World, now: datetime) -> Plan:
    """Return the plan for the job."""
    return bundles.without_foreign(world, _next_step(world, now))


def _next_step(world: World, now: datetime) -> Plan:
    """Return the plan for the job: a checklist in which the first item that is not done decides."""
    if world.deleting:
        return Plan()  # the garbage collector removes the children of a deleted job
    if world.is_over:
        return after_the_end(world, now)

    history = records.history(world, now)
    last = history.last
    is_running = history.standing.standing in (Standing.RUNNING, Standing.WAITING)
    if world.status.artifacts is not None and not is_running:
        return plans.published(world, history, now)  # also if the attempt was stopped after it had published
    if last is not None and last.reason == records.SUCCEEDED:
        if world.raw_status.get("artifacts"):  # those of a later version cannot always be read
            return plans.complete(world, history, now)
        return plans.without_results(world, history, last.name, now)

    stop = limits.stop(world, history, now)
    if stop is not None and history.is_interrupted and not _has_published(world, last):
        return _stop(world, records.stopped(world, history, stop.reason, stop.message, now), now)
    if last is not None and last.reason is None:
        return _follow(world, history, now)
    if (end := _end_of_retries(world, history, stop, now)) is not None:
        return end
    obstacle = admission.obstacle(world, now)
    if obstacle is not None and obstacle.final:
        found = with_remedy(obstacle.finding, obstacle.remedy) if obstacle.remedy else obstacle.finding
        return _fail(world, history, FailureReason.SPEC_INVALID, found, now)
    if stop is not None:
        return _hold(world, history, stop, now)
    if obstacle is not None or world.spec is None or world.profile is None:
        outlook = Outlook(State.PENDING, "WaitingForDependency", obstacle.while_waiting if obstacle else "")
        return plans.proceed(world, outlook, history, now, requeue_after=admission.LOOK_AGAIN)

    if preflights.assess_one(world, now).standing is not Standing.SUCCEEDED:
        return _validate(world, world.spec, world.profile, history, now)
    return _train(world, world.spec, world.profile, history, now)


def _has_published(world: World, last: Attempt | None) -> bool:
    """Whether the trainer has published and ended well, and only other containers of its pod still run."""
    pod = records.run_of(world, last).pod if last is not None and world.status.artifacts is not None else None
    return pod is not None and pod.trainer_succeeded


def refused(world: World, message: str, now: datetime, reason: str = "CreationRefused") -> Plan:
    """Return the plan that replaces one with an object that could not be created or deleted. Its status tells the
    tenant why. The status of a job that has ended stays, and an Event tells it.

    `message`: why, and what helps. The refused plan is tried again with growing pauses."""
    if world.is_over:
        return Plan(events=[Event("Warning", "CleanupRefused", message)])
    history = records.history(world, now)
    return plans.proceed(world, Outlook(State.PENDING, reason, message), history, now)


def _follow(world: World, history: History, now: datetime) -> Plan:
    """Return the plan for a job whose attempt exists and has not ended.

    The attempt reads only its bundle, so a changed or deleted profile does not stop it."""
    record, attempt = history.attempts[-1], history.standing
    run = records.run_of(world, record)
    why_avoided = placement.why_avoided(history.attempts)
    if finding := placement.without_a_node(record, run, why_avoided, now):
        stuck = records.stopped(world, history, why_avoided, finding, now)  # no other attempt follows
        return plans.proceed(world, outlooks.stopping(finding), stuck, now, requeue_after=NOW_AGAIN)
    if finding := gathering.incomplete(record, run, attempt.standing, now):
        dissolved = records.stopped(world, history, FailureReason.EVICTED, finding, now)
        return plans.proceed(world, outlooks.stopping(finding), dissolved, now, requeue_after=NOW_AGAIN)
    if finding := silence.silent(world, record.number, run, attempt, now):
        said = with_remedy(finding, remedies.SILENT_ATTEMPT)
        stalled = records.stopped(world, history, FailureReason.TRAINING_STALLED, said, now)
        return plans.proceed(world, outlooks.stopping(finding), stalled, now, requeue_after=NOW_AGAIN)
    if finding := bundles.misfit(world, run):
        evicted = records.stopped(world, history, FailureReason.EVICTED, finding, now)
        return plans.proceed(world, outlooks.stopping(finding), evicted, now, requeue_after=NOW_AGAIN)
    create = children.groundwork(world, world.spec) if world.spec is not None else []
    if bundles.is_lacking(world, run) and world.spec is not None and world.profile is not None:
        create += bundles.missing(world, world.spec, world.profile)
    stage, waits_until = records.stage_of(world, record), placement.waits_until(record, run)
    outlook = outlooks.training(record, attempt, stage, gpu_choice.name_of(world), waits_until)
    more = gathering.told(record, run, attempt.standing) + admission.told_of_unread(world)
    outlook = replace(outlook, message=outlook.message + more)
    looks = (
        attempt.requeue_after,
        limits.next_look(world, history, now),
        placement.look_again(record, run, now),
        gathering.look_again(record, run, now),
        silence.silent_in(world, record.number, run, attempt, now),
    )
    return plans.proceed(
        world, outlook, history, now, create, min((look for look in looks if look is not None), default=None)
    )


def _stop(world: World, history: History, now: datetime) -> Plan:
    """Return the plan that stops the running attempt, whose record names the cause. Its pod stores a checkpoint."""
    record = history.attempts[-1]
    stop = limits.Stop(record.reason or "", record.message or "")
    outlook = outlooks.suspended(stop) if stop.suspends_the_job else outlooks.stopping(outlooks.going_on(stop.message))
    return plans.proceed(world, outlook, history, now, requeue_after=NOW_AGAIN)


def _hold(world: World, history: History, stop: limits.Stop, now: datetime) -> Plan:
    """Return the plan for a job that must not run and has no running attempt."""
    if not stop.suspends_the_job:
        return _fail(world, history, FailureReason.DEADLINE_EXCEEDED, stop.message, now)
    history = preflights.stopped(world, history, stop.reason, stop.message, now)
    held = _held(world, now)
    end = _how_to_end(world, held[-1]) if held else ""
    more = f" Pod {held[-1].name}, which has no Job any more, still runs.{end}" if end else ""
    outlook = replace(outlooks.suspended(stop), message=stop.message + more)
    plan = plans.proceed(world, outlook, history, now, requeue_after=_until_gone(world, now))
    return replace(plan, delete_jobs=plans.live(world.preflight, *world.attempts.values()))


def _end_of_retries(world: World, history: History, stop: limits.Stop | None, now: datetime) -> Plan | None:
    """Return the plan that ends a job whose last attempt or preflight is not tried again; None if it is.

    It also ends a job that is suspended: the next one would fail in the same way. `stop`: why the job must not run."""
    policy, last = world.spec.policy if world.spec else plans.UNREADABLE, history.last
    if last is not None and stop is not None and last.reason == stop.reason == FailureReason.DEADLINE_EXCEEDED:
        # What the spec says now counts, not what it said when the attempt was stopped.
        return _fail(world, history, FailureReason.DEADLINE_EXCEEDED, stop.message, now, meanwhile=stop.message)
    if last is not None and (end := _end_of_attempts(world, history, last, policy, now)) is not None:
        return end
    found = preflights.assess_one(world, now)
    if found.standing is not Standing.FAILED:
        return None
    history = preflights.with_failure(world, history, found, now)
    verdict = retries.after_preflight(history.preflights, history.counts, policy, now)
    if not isinstance(verdict, retries.GiveUp):
        return None
    return _fail(world, history, verdict.reason, verdict.finding, now)


def _end_of_attempts(world: World, history: History, last: Attempt, policy: RunPolicy, now: datetime) -> Plan | None:
    """Return the plan that ends a job whose last attempt is not tried again; None if it is."""
    if (said := records.own_end(world, last)) is not None:
        return _fail(world, history, said[1], said[0], now, meanwhile=outlooks.going_on(said[0]))
    verdict = retries.after_attempt(history.attempts, history.counts, policy, now)
    if not isinstance(verdict, retries.GiveUp):
        return None
    too_small = verdict.reason is FailureReason.GPU_OUT_OF_MEMORY
    found = out_of_memory.finding(world, verdict.finding) if too_small else verdict.finding
    return _fail(world, history, verdict.reason, found, now, meanwhile=outlooks.going_on(last.message))


def _fail(
    world: World,
    history: History,
    reason: FailureReason,
    finding: str,
    now: datetime,
    meanwhile: str | None = None,
) -> Plan:
    """Return the plan that ends the job as failed, but not before its pods have stopped: their GPUs count to the end.

    `meanwhile`: what is told until then, where the end of a pod can still change the decision: it may store a
    checkpoint, after which another attempt follows. Then also a pod is waited for that nobody has asked to stop."""
    held = [pod for pod in _held(world, now) if pod.started is not None]
    stopping = [pod for pod in held if pod.is_leaving or meanwhile is not None]
    if plans.deletes_unrecorded(world, history):
        return plans.proceed(world, outlooks.stopping(meanwhile or finding), history, now, requeue_after=NOW_AGAIN)
    if not stopping or history.last is None:
        return plans.fail(world, history, reason, finding, now)
    pod = stopping[-1]
    told = f"{meanwhile or finding} The job waits for the end of pod {pod.name}.{_how_to_end(world, pod)}"
    return plans.proceed(world, outlooks.stopping(told), history, now, requeue_after=_until_gone(world, now))


def _validate(
    world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, history: History, now: datetime
) -> Plan:
    """Return the plan for a job whose preflight has not succeeded."""
    found = preflights.assess_one(world, now)
    if found.standing is Standing.FAILED:
        history = preflights.with_failure(world, history, found, now)
        verdict = retries.after_preflight(history.preflights, history.counts, spec.policy, now)
        assert isinstance(verdict, retries.Again)  # `_end_of_retries` has looked
        # A missing preflight may be the first sign that the whole FineTuneJob was deleted.
        if not preflights.is_recorded(world, history) or now < verdict.at:
            pause = max(verdict.at - now, NOW_AGAIN)
            outlook = outlooks.retrying(history.preflights[-1], "Preflight", verdict.at, now)
            plan = plans.proceed(world, outlook, history, now, requeue_after=pause)
            return replace(plan, is_final=preflights.vanished(world) is not None)
        found = RunStanding(Standing.ABSENT)
        history = replace(history, preflight=world.preflight_under_way)
    create = children.groundwork(world, spec)
    lacking = world.preflight is not None and bundles.is_lacking(world, world.preflight)
    if found.standing is Standing.ABSENT or lacking or not world.has_pod_on_record:
        create += bundles.missing(world, spec, profile)
    if found.standing is Standing.ABSENT:
        create.append(children.preflight_job(world, spec, profile, world.preflight_under_way))
    plan = plans.proceed(world, outlooks.validating(found), history, now, create, found.requeue_after)
    return replace(plan, is_final=found.standing is Standing.ABSENT and world.status.state is not None)


def _train(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, history: History, now: datetime) -> Plan:
    """Return the plan for a job whose preflight has succeeded and that has no running attempt."""
    last, avoided = history.last, list[str]()
    if last is None:
        if owner := admission.owner_of_output(world):
            return plans.fail(world, history, FailureReason.OUTPUT_OCCUPIED, owner, now)
    else:
        verdict = retries.after_attempt(history.attempts, history.counts, spec.policy, now)
        assert isinstance(verdict, retries.Again)  # `_end_of_retries` has looked
        held = _held(world, now)
        outlook = outlooks.retrying(last, "Attempt", verdict.at, now, held)
        hint = retries.before_first_step(history.attempts)
        end = _how_to_end(world, held[-1]) if held else ""
        outlook = replace(outlook, message=f"{outlook.message}{end} {hint}".rstrip())
        if not history.is_recorded or plans.live(*world.attempts.values()):
            return plans.proceed(world, outlook, history, now, requeue_after=NOW_AGAIN)  # deletes them first
        if (left := _until_gone(world, now)) is not None:
            return plans.proceed(world, outlook, history, now, requeue_after=left)
        if (attached := claims.still_attached(world, now)) is not None:
            outlook = replace(outlook, message=f"{outlook.message} {attached}")
            return plans.proceed(world, outlook, history, now, requeue_after=claims.LOOK_AGAIN)
        if now < verdict.at:
            limit = limits.next_look(world, history, now)
            pause = min(verdict.at - now, limit) if limit else verdict.at - now
            return plans.proceed(world, outlook, history, now, requeue_after=pause)
        avoided = verdict.avoided
    # A record can be gone: a person edited the status, or a later version wrote it. The count still tells its number.
    number = max(last.number if last else 0, history.counts.attempts) + 1
    halvings = retries.halvings(history.counts)
    gpu = gpu_choice.of_next_attempt(world)
    assert gpu is not None  # `admission.obstacle` has looked
    job = children.attempt_job(world, spec, profile, children.Try(number, gpu, halvings, tuple(avoided)))
    begun = history.begun(records.new(world, number, avoided))
    outlook = outlooks.training(begun.attempts[-1], RunStanding(Standing.ABSENT), "Training", gpu.name)
    create = [
        *children.groundwork(world, spec),
        *bundles.missing(world, spec, profile),
        *gangs.network(world, spec),
        job,
    ]
    plan = plans.proceed(world, outlook, begun, now, create)
    events = [*plan.events, *model_cache.events(world, spec, profile, number)]
    return replace(plan, events=events, is_final=True)


def _until_gone(world: World, now: datetime) -> timedelta | None:
    """Return when to look again for pods of earlier attempts that have not ended; None if there are none."""
    held = _held(world, now)
    looks = [look for pod in held if (look := next_look(pod, now)) is not None]
    return min(looks, default=admission.LOOK_AGAIN) if held else None


def _held(world: World, now: datetime) -> list[Pod]:
    """Return the pods of attempts that have not ended, also of attempts that are not recorded. There is never more than
    one trainer.

    A pod on a lost node can exist for ever, so it counts only for a while."""
    pods = [pod for run in world.attempts.values() for pod in run.pods]
    left = [pod for remaining in world.remains.values() for pod in remaining]
    return [pod for pod in (*pods, *left) if not usage.has_ended(pod, now)]


def _how_to_end(world: World, pod: Pod) -> str:
    """Return how to end a pod that no Job and no operator ends, as the end of a message; "" of another pod."""
    if pod.is_leaving or plans.live(*world.attempts.values()):
        return ""
    return f" To end it: kubectl delete pod {pod.name}."
