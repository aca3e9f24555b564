"""The preflight of a job, and the records of those that ended without a result."""

from dataclasses import replace
from datetime import datetime

from finetune_api import names
from finetune_api.reasons import FailureReason, with_remedy
from finetune_api.status.attempts import Attempt
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.attempts import silence
from finetune_operator.decisions.attempts.records import History
from finetune_operator.decisions.attempts.retries import MOST_PREFLIGHTS
from finetune_operator.decisions.objects import bundles
from finetune_operator.observed.causes import own_words, remedies
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.runs import assess
from finetune_operator.observed.standing import RunStanding, Standing
from finetune_operator.observed.world import World


def assess_one(world: World, now: datetime) -> RunStanding:
    """Return the state of the preflight. If its pod or Job was stopped or removed, its condition counts."""
    run = _run(world)
    said = own_words.failure_said(world.status, own_words.PREFLIGHT, run.begun if run else world.created)
    found = _heard(world, run, assess(run, now, said), now)
    if run is not None and (finding := bundles.misfit(world, run)) is not None:
        found = RunStanding(Standing.FAILED, finding, FailureReason.EVICTED)
    if world.status.is_true(ConditionType.VALIDATED) and found.standing is not Standing.RUNNING:
        return RunStanding(Standing.SUCCEEDED)
    if (name := vanished(world)) is not None:
        if _last(world) is None and said is not None and said[1] is not FailureReason.PREEMPTED:
            return RunStanding(Standing.FAILED, *said)  # with a record, these may be the words of an earlier preflight
        return RunStanding(Standing.FAILED, f"Job {name} was deleted before its work was done.", FailureReason.EVICTED)
    if found.standing is Standing.ABSENT and (last := _last(world)) is not None:
        return RunStanding(Standing.FAILED, last.message or "", _reason(last))
    if found.standing is Standing.ABSENT and said is not None and said[1] is not FailureReason.PREEMPTED:
        return RunStanding(Standing.FAILED, *said)
    return found


def _heard(world: World, run: Run | None, found: RunStanding, now: datetime) -> RunStanding:
    """Return the state of a preflight, which has failed if its pod runs and has written nothing for too long."""
    left = silence.silent_in(world, 0, run, found, now) if run is not None else None
    if run is None or left is None:
        return found
    if (finding := silence.silent(world, 0, run, found, now)) is not None:
        said = with_remedy(finding, remedies.SILENT_PREFLIGHT)
        return RunStanding(Standing.FAILED, said, FailureReason.TRAINING_STALLED)
    looks = (found.requeue_after, left)
    return replace(found, requeue_after=min(look for look in looks if look is not None))


def is_done(world: World, now: datetime) -> bool:
    """Whether the preflight has succeeded."""
    return assess_one(world, now).standing is Standing.SUCCEEDED


def with_failure(world: World, history: History, found: RunStanding, now: datetime) -> History:
    """Return the history with the record of the preflight that has failed."""
    if _run(world) is None and _last(world) is not None and vanished(world) is None:
        return history  # `found` is what its record says
    return _with_record(world, history, found.failure or FailureReason.TRAINER_CRASHED, found.message, now)


def stopped(world: World, history: History, reason: str, message: str, now: datetime) -> History:
    """Return the history with the record of the preflight that is stopped because the job is suspended, or that has
    failed at the same time.

    One whose pod has not started can have written nothing, and has none."""
    run, found = _run(world), assess_one(world, now)
    if found.standing is Standing.FAILED:
        return with_failure(world, history, found, now)
    has_started = run is not None and run.pod is not None and run.pod.started is not None
    if found.standing is Standing.SUCCEEDED or not has_started or world.preflight_number >= MOST_PREFLIGHTS:
        return history
    return _with_record(world, history, reason, message, now)


def is_recorded(world: World, history: History) -> bool:
    """Whether the status already has the record of the last failed preflight."""
    last = _last(world)
    return last is not None and last.number == history.preflights[-1].number


def _with_record(world: World, history: History, reason: str, message: str, now: datetime) -> History:
    """Return the history with the record of the preflight that is not on record yet."""
    run = _run(world)
    pod, number = (run.pod, world.preflight_number) if run else (None, world.preflight_under_way)
    record = Attempt(
        number=number,
        name=run.name if run else names.preflight_name(world.name, world.uid, number),
        completion_time=min((pod.finished if pod else None) or now, now),  # the clock of the API server may be ahead
        reason=reason,
        message=message,
        exit_code=pod.exit_code if pod else None,
        node_name=pod.node_name if pod else None,
    )
    return replace(history, preflights=(*history.preflights, record))


def vanished(world: World) -> str | None:
    """Return the name of the preflight's Job if the status says that it exists, and somebody has deleted it.

    Before the operator itself deletes it, the status says something else: that the job is suspended, or how the
    preflight ended."""
    number = world.preflight_under_way
    exists = world.preflight is not None and world.preflight_number >= number
    if exists or not world.expects_preflight:
        return None
    return names.preflight_name(world.name, world.uid, number)


def _run(world: World) -> Run | None:
    """Return the preflight that is not on record yet; None if its Job does not exist.

    The Job of one on record does not count, also if it was not deleted yet."""
    return world.preflight if world.preflight_number >= world.preflight_under_way else None


def _last(world: World) -> Attempt | None:
    return world.status.preflights[-1] if world.status.preflights else None


def _reason(record: Attempt) -> FailureReason:
    return FailureReason(record.reason) if record.reason in set(FailureReason) else FailureReason.TRAINER_CRASHED
