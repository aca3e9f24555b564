"""Decides the next action for one FineTuneJob. Pure: the same world and time give the same plan."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.reasons import FailureReason, finding_of, sentence, with_remedy
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import Attempt, ConditionType, Stage, State
from finetune_operator.decisions import admission, children
from finetune_operator.decisions.conditions import Outlook, is_written, operator_status
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed import own_words
from finetune_operator.observed.pods import Object
from finetune_operator.observed.runs import assess
from finetune_operator.observed.standing import End, RunStanding, Standing
from finetune_operator.observed.workloads import NORMAL_HOLDS
from finetune_operator.observed.world import Run, World

ATTEMPT = 1
"""Number of the only attempt. A failed attempt ends the job."""
_STAGES = {"PreflightPending", "Validating", "WaitingForGPU", "Training", "Evaluating", "Publishing", *NORMAL_HOLDS}
"""Reasons of the condition Ready that every job passes through."""


def reconcile(world: World, now: datetime) -> Plan:
    """Return the plan for the job: a checklist in which the first item that is not done decides."""
    if world.deleting or world.is_over:
        return Plan()  # the garbage collector removes the children of a deleted job

    run = world.attempts.get(ATTEMPT)
    if run is not None:
        return _follow(world, run, now)
    if world.status.artifacts is not None:
        return _published(world, now)  # the attempt's Job was removed after it had published
    if (word := _word_of_a_gone_attempt(world)) is not None:
        return _fail(world, word[1], word[0], now)

    obstacle = admission.obstacle(world, now)
    if obstacle is not None and obstacle.final:
        found = with_remedy(obstacle.finding, obstacle.remedy) if obstacle.remedy else obstacle.finding
        return _fail(world, FailureReason.SPEC_INVALID, found, now)
    if obstacle is not None or world.spec is None or world.profile is None:
        outlook = Outlook(State.PENDING, "WaitingForDependency", obstacle.while_waiting if obstacle else "")
        return _proceed(world, outlook, now, requeue_after=admission.LOOK_AGAIN)

    preflight = _preflight(world, now)
    if preflight.standing is Standing.FAILED:
        return _fail(world, preflight.failure, preflight.message, now)
    create = _groundwork(world, world.spec)
    if preflight.standing is not Standing.SUCCEEDED:
        if preflight.standing is Standing.ABSENT or _lacks_bundle(world, world.preflight):
            create.append(children.bundle_config_map(world, world.spec, world.profile))
        if preflight.standing is Standing.ABSENT:
            create.append(children.preflight_job(world, world.spec, world.profile))
        return _proceed(world, _validating(preflight), now, create, preflight.requeue_after)

    if owner := admission.owner_of_output(world):
        return _fail(world, FailureReason.OUTPUT_OCCUPIED, owner, now)
    create.append(children.attempt_job(world, world.spec, world.profile, ATTEMPT))
    begun = replace(world, attempts={ATTEMPT: Run(names.attempt_name(world.name, world.uid, ATTEMPT), created=now)})
    return replace(_proceed(begun, _training(begun, RunStanding(Standing.ABSENT)), now, create), is_final=True)


def refused(world: World, message: str, now: datetime) -> Plan:
    """Return the plan that replaces one with an object that the API server refused. Its status tells the tenant why.

    The refused plan is tried again with growing pauses."""
    return _proceed(world, Outlook(State.PENDING, "CreationRefused", message), now)


def _follow(world: World, run: Run, now: datetime) -> Plan:
    """Return the plan for a job whose attempt exists.

    The attempt reads only its bundle, so a changed or deleted profile does not stop it."""
    attempt = _assess_attempt(world, run, now)
    ended_or_held = attempt.standing in (Standing.FAILED, Standing.SUSPENDED)
    if ended_or_held and world.status.artifacts is not None:
        return _published(world, now)  # the attempt was ended or suspended after it had published
    if attempt.standing is Standing.FAILED:
        return _fail(world, attempt.failure, attempt.message, now)
    if attempt.standing is Standing.SUCCEEDED:
        return _complete(world, now)
    create = []
    if _lacks_bundle(world, run) and world.spec is not None and world.profile is not None:
        create = [children.bundle_config_map(world, world.spec, world.profile)]
    return _proceed(world, _training(world, attempt, run), now, create, attempt.requeue_after)


def _lacks_bundle(world: World, run: Run | None) -> bool:
    """Whether the pod cannot start because somebody deleted the bundle, as the kubelet reports it."""
    event = run.pod.event if run and run.pod else None
    name = names.child_prefix(world.name, world.uid)
    return event is not None and f'configmap "{name}" not found' in event.message


def _assess_attempt(world: World, run: Run, now: datetime) -> RunStanding:
    return assess(run, now, own_words.failure_said(world.status, own_words.ATTEMPT, run.begun))


def _word_of_a_gone_attempt(world: World) -> End | None:
    """Return why the attempt failed, if its Job and its pod were removed afterwards; else None.

    None also for an attempt that was only asked to stop: the operator creates it again."""
    record = next((a for a in world.status.attempts or [] if a.number == ATTEMPT), None)
    if record is None:
        return None
    word = own_words.failure_said(world.status, own_words.ATTEMPT, record.start_time or world.created)
    return None if word is None or word[1] is FailureReason.PREEMPTED else word


def _groundwork(world: World, spec: FineTuneJobSpec) -> list[Object]:
    """Return the missing objects of the namespace that every pod of the job needs."""
    if spec.compute.service_account_name not in (None, names.TRAINER_SERVICE_ACCOUNT):
        return []
    account = [] if world.service_account_exists else [children.service_account(world)]
    return account if world.role_binding_exists else [*account, children.role_binding(world)]


def _preflight(world: World, now: datetime) -> RunStanding:
    """Return the state of the preflight. If its pod or Job was stopped or removed, its condition counts."""
    begun = world.preflight.begun if world.preflight else world.created
    said = own_words.failure_said(world.status, own_words.PREFLIGHT, begun)
    found = assess(world.preflight, now, said)
    if world.status.is_true(ConditionType.VALIDATED) and found.standing is not Standing.RUNNING:
        return RunStanding(Standing.SUCCEEDED)
    if found.standing is Standing.ABSENT and said is not None and said[1] is not FailureReason.PREEMPTED:
        return RunStanding(Standing.FAILED, *said)
    return found


def _validating(preflight: RunStanding) -> Outlook:
    if preflight.standing is Standing.RUNNING:
        return Outlook(
            State.VALIDATING, "Validating", "The preflight checks the data, the model and the output.", Stage.PREFLIGHT
        )
    if preflight.standing is Standing.SUSPENDED:
        return Outlook(State.QUEUED, preflight.reason, preflight.message, Stage.PREFLIGHT)
    return Outlook(
        State.PENDING, "PreflightPending", preflight.message or "The preflight pod is starting.", Stage.PREFLIGHT
    )


def _training(world: World, attempt: RunStanding, run: Run | None = None) -> Outlook:
    if attempt.standing is Standing.SUSPENDED:
        return Outlook(State.QUEUED, attempt.reason, attempt.message)
    if attempt.standing is not Standing.RUNNING:
        return Outlook(State.QUEUED, "WaitingForGPU", attempt.message or "The training pod is starting.")
    started = run.pod.started if run and run.pod else None
    if own_words.holds_since(world.status, ConditionType.EVALUATED, started):
        return Outlook(
            State.RUNNING,
            "Publishing",
            "The adapter and the report are being written to spec.output.uri.",
            Stage.PUBLISHING,
        )
    if own_words.holds_since(world.status, ConditionType.TRAINED, started):
        return Outlook(
            State.RUNNING,
            "Evaluating",
            "The tuned model is compared with the base model on the test rows.",
            Stage.EVALUATING,
        )
    return Outlook(State.RUNNING, "Training", f"Training attempt {ATTEMPT} is running.", Stage.TRAINING)


def _proceed(
    world: World,
    outlook: Outlook,
    now: datetime,
    create: list[Object] | None = None,
    requeue_after: timedelta | None = None,
) -> Plan:
    status = operator_status(world, outlook, _attempts(world, now), now)
    done = _preflight(world, now).standing is Standing.SUCCEEDED
    return Plan(
        create=create or [],
        # A sidecar can keep the pod running, and a queue can resume the Job: the finished preflight would run again.
        delete_jobs=_live(world.preflight) if done else [],
        events=_events(world, outlook),
        status=None if is_written(world, status) else status,
        requeue_after=requeue_after,
    )


def _fail(world: World, reason: FailureReason | None, message: str, now: datetime) -> Plan:
    """Return the plan that ends the job as failed. Jobs that could still hold resources are deleted."""
    reason = reason or FailureReason.TRAINER_CRASHED
    outlook = Outlook(State.FAILED, reason, sentence(reason, message), failure=reason)
    status = operator_status(world, outlook, _attempts(world, now), now)
    return Plan(
        delete_jobs=_live(world.preflight, *world.attempts.values()),
        events=_events(world, outlook),
        status=status,
        is_final=True,
    )


def _live(*runs: Run | None) -> list[str]:
    """Return the names of those Jobs that can still start or hold a pod."""
    return [run.name for run in runs if run is not None and run.is_live]


def _published(world: World, now: datetime) -> Plan:
    """Return the plan that ends a job whose results are published. Results that miss a gate are published too."""
    if world.status.evaluation is None or world.status.evaluation.passed is not False:
        return _complete(world, now)
    reason, evaluated = FailureReason.EVALUATION_GATE_FAILED, world.status.condition(ConditionType.EVALUATED)
    return _fail(world, reason, finding_of(reason, evaluated.message) if evaluated else "", now)  # adds the remedy


def _complete(world: World, now: datetime) -> Plan:
    evaluation = world.status.evaluation
    verdict = evaluation.verdict if evaluation else None
    outlook = Outlook(State.COMPLETE, "Succeeded", verdict or "The results are published at spec.output.uri.")
    status = operator_status(world, outlook, _attempts(world, now), now)
    return Plan(
        delete_jobs=_live(world.preflight, *world.attempts.values()),
        events=_events(world, outlook),
        status=status,
        is_final=True,
    )


def _attempts(world: World, now: datetime) -> list[Attempt]:
    """Return the records of all attempts: from existing Jobs, and from the status for Jobs that are gone."""
    known = {attempt.number: attempt for attempt in world.status.attempts or []}
    known |= {number: _attempt(world, number, run, now) for number, run in world.attempts.items()}
    if not world.attempts and ATTEMPT in known and (word := _word_of_a_gone_attempt(world)):
        known[ATTEMPT] = known[ATTEMPT].model_copy(update={"reason": word[1], "message": word[0]})
    return [known[number] for number in sorted(known)]


def _attempt(world: World, number: int, run: Run, now: datetime) -> Attempt:
    assessment, pod = _assess_attempt(world, run, now), run.pod
    succeeded = assessment.standing is Standing.SUCCEEDED
    return Attempt(
        number=number,
        name=run.name,
        start_time=pod.started if pod else None,
        completion_time=pod.finished if pod else None,
        reason="Succeeded" if succeeded else assessment.failure,
        message=assessment.message if assessment.failure else None,
        exit_code=pod.exit_code if pod else None,
        node_name=pod.node_name if pod and pod.started else None,
    )


def _events(world: World, outlook: Outlook) -> list[Event]:
    """Return an Event if the job ends, or begins to wait for somebody to act. Stages are in the status only."""
    ready = world.status.condition(ConditionType.READY)
    if outlook.reason in _STAGES or (ready is not None and ready.reason == outlook.reason):
        return []
    return [Event("Warning" if outlook.failure else "Normal", outlook.reason, outlook.message)]
