"""The attempts of a job: what the status has recorded, brought up to date with the Jobs and pods that exist.

A record outlives its Job and pods. Once it has a reason, the reason stays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from finetune_api import names
from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_api.status.attempts import RECORDED, Attempt, Counts
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.decisions import gpu_choice
from finetune_operator.decisions.attempts import gathering, placement, progress, usage
from finetune_operator.decisions.attempts.progress import retry_of
from finetune_operator.observed.causes import own_words
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.runs import assess, own_failure
from finetune_operator.observed.standing import End, RunStanding, Standing
from finetune_operator.observed.world import Progress, World

SUCCEEDED = "Succeeded"


@dataclass(frozen=True)
class History:
    """All attempts and failed preflights of a job."""

    before: FineTuneJobStatus
    """The status as it is written."""
    attempts: tuple[Attempt, ...]
    """Known attempts by number, the last ones."""
    preflights: tuple[Attempt, ...] = ()
    """Preflights that ended without a result, by number, the last ones."""
    standing: RunStanding = RunStanding(Standing.ABSENT)  # noqa: RUF009 - immutable
    """State of the last attempt."""
    preflight: int = 1
    """Number of the last preflight that was started."""

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def is_recorded(self) -> bool:
        """Whether the status already tells how the last attempt ended."""
        written = {attempt.number: attempt for attempt in self.before.attempts or []}
        return self.last is not None and self.last.number in written and written[self.last.number].reason is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether the last attempt runs, or was stopped and the status does not yet say why."""
        if self.last is None or self.is_recorded:
            return False
        return self.last.reason is None or retry_of(self.last) is Retry.INTERRUPTION

    @cached_property
    def counts(self) -> Counts:
        """Return how often training was tried: the written counts, and what is new in the records."""
        before = self.before.counts or Counts()
        new = _new_ends(self.before.attempts, self.attempts)
        new_preflights = _new_ends(self.before.preflights, self.preflights)
        interruptions = sum(retry_of(record) is Retry.INTERRUPTION for record in (*new, *new_preflights))
        return Counts(
            preflights=self.preflight if self.preflight > 1 else None,
            attempts=max([before.attempts, *(attempt.number for attempt in self.attempts)]),
            retries=(before.retries or 0) + self._new_retries() + self._new_repeats() or None,
            interruptions=(before.interruptions or 0) + interruptions or None,
            in_vain=progress.in_vain(before, self.before.attempts or (), self.attempts) or None,
            forgotten=progress.forgotten(before.forgotten, self.attempts[:-RECORDED]),
            reasons=_counted(before.reasons, new),
            preflight_reasons=_counted(before.preflight_reasons, new_preflights),
        )

    def _new_retries(self) -> int:
        """Return how many attempts are new that follow a failed one."""
        written = {attempt.number for attempt in self.before.attempts or []}
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return sum(is_charged(first.reason) for first, second in pairs if second.number not in written)

    def _new_repeats(self) -> int:
        """Return how many preflights are new that follow a failed one."""
        before = (self.before.counts.preflights if self.before.counts else None) or 1
        new = range(before, self.preflight)
        return sum(is_charged(record.reason) for record in self.preflights if record.number in new)

    def closed(self, now: datetime) -> "History":
        """Return the history of a job that ends now."""
        return replace(self, attempts=tuple(usage.closed(attempt, now) for attempt in self.attempts))

    def begun(self, attempt: Attempt) -> "History":
        """Return the history in which another attempt was started."""
        return replace(self, attempts=(*self.attempts, attempt), standing=RunStanding(Standing.ABSENT))


def _new_ends(written: Sequence[Attempt] | None, records: Sequence[Attempt]) -> list[Attempt]:
    """Return the records that ended without success, and whose end is not written yet."""
    known = {record.number for record in written or () if record.reason is not None}
    return [each for each in records if each.reason not in (None, SUCCEEDED) and each.number not in known]


def _counted(before: dict[str, int] | None, new: Sequence[Attempt]) -> dict[str, int] | None:
    """Return the number of ends by reason."""
    return dict(Counter(before or {}) + Counter(str(record.reason) for record in new)) or None


def is_charged(reason: str | None) -> bool:
    """Whether a new attempt after one that ended for this reason counts as a retry."""
    retry = FAILURES[FailureReason(reason)].retry if reason in set(FailureReason) else None
    return retry in (Retry.ONCE, Retry.BACKOFF, Retry.OTHER_NODE)


def history(world: World, now: datetime) -> History:
    """Return the attempts of the job as they are now."""
    written = {attempt.number: attempt for attempt in world.status.attempts or []}
    first = min(written, default=1)  # Jobs of attempts that are no longer recorded may still exist
    numbers = sorted({*written, *(number for number in (*world.attempts, *world.remains) if number >= first)})
    records: list[Attempt] = []
    standing = RunStanding(Standing.ABSENT)
    price = gpu_choice.price_of(world) if _has_cost_limit(world) else None
    for number in numbers:
        # A Job that is not recorded was created just before the operator stopped. It may be deleted meanwhile, with a
        # pod that still runs.
        known = written.get(number) or new(world, number, placement.avoided_after(records) if records else None)
        known = usage.priced(known, price)
        standing = _standing(world, known, now)
        records.append(_updated(world, known, standing, records, now))
    recorded = (world.status.counts.preflights if world.status.counts else None) or 1
    started = max(recorded, world.preflight_number if world.preflight else 1)
    return History(world.status, tuple(records), tuple(world.status.preflights or ()), standing, started)


def _has_cost_limit(world: World) -> bool:
    """Whether the job has a limit on its cost, so that attempts from before that limit need a price too."""
    budget = world.spec.policy.budget if world.spec else None
    return budget is not None and budget.cost is not None


def new(world: World, number: int, avoided: list[str] | None = None) -> Attempt:
    """Return the record of an attempt that starts now, at the price that the GPU has now."""
    gpus = world.spec.compute.gpus_per_node if world.spec else 1
    return Attempt(
        number=number,
        name=names.attempt_name(world.name, world.uid, number),
        gpus=gpus if gpus > 1 else None,
        price_per_hour=gpu_choice.price_of(world),
        avoided_nodes=avoided or None,
    )


def run_of(world: World, record: Attempt) -> Run:
    """Return the Job of this attempt with its pod. A Job that was deleted is like one that has failed."""
    run = world.attempts.get(record.number)
    if run is not None:
        return run
    begun, nodes = record.start_time or world.created, world.spec.compute.nodes if world.spec else 1
    gone = Run(name=record.name, created=begun, begun=begun, failed=True, is_gone=True, nodes=nodes)
    return gone.with_pods(list(world.remains.get(record.number, ())))


def said_of(world: World, record: Attempt) -> End | None:
    """Return the failure that the attempt's own pod wrote in the status."""
    run, types = run_of(world, record), own_words.of_attempt(world.authors, record.number)
    return own_words.failure_said(world.status, types, _listening_since(world, record, run))


def own_end(world: World, record: Attempt) -> End | None:
    """Return why an attempt failed that the operator had stopped, if its pod said so while it stopped, and if every
    later attempt would fail in the same way."""
    if record.reason in (None, SUCCEEDED) or not progress.was_stopped(record):
        return None
    said = said_of(world, record)
    return said if said is not None and FAILURES[said[1]].retry is Retry.NEVER else None


def stage_of(world: World, record: Attempt) -> str:
    """Return how far this attempt has come, by the conditions that it wrote."""
    run, types = run_of(world, record), own_words.of_attempt(world.authors, record.number)
    since = _listening_since(world, record, run, run.pod.started if run.pod else None)
    if ConditionType.EVALUATED in types and own_words.is_evaluated_since(world.status, since):
        return "Publishing"
    is_trained = ConditionType.TRAINED in types and own_words.holds_since(world.status, ConditionType.TRAINED, since)
    return "Evaluating" if is_trained else "Training"


def _listening_since(world: World, record: Attempt, run: Run, begun: datetime | None = None) -> datetime | None:
    """Return since when conditions are the words of this attempt's present pod.

    The clock of a pod may be wrong. Its time is needed only if the attempt had several pods on a node, or if the API
    server has not recorded which attempt wrote a condition."""
    is_known = bool(world.authors)
    return (
        own_words.EVER
        if is_known and len(usage.pods_of(record, run)) <= run.nodes
        else begun or run.begun or run.created
    )


def _standing(world: World, known: Attempt, now: datetime) -> RunStanding:
    if known.reason is not None:
        failure = FailureReason(known.reason) if known.reason in set(FailureReason) else None
        ended = Standing.SUCCEEDED if known.reason == SUCCEEDED else Standing.FAILED
        return RunStanding(ended, known.message or "", failure)
    run = run_of(world, known)
    return assess(run, now, said_of(world, known), gathering.has_gathered(known, run))


def stopped(world: World, history: History, reason: str, message: str, now: datetime) -> History:
    """Return the history in which the operator has stopped the last attempt. If the trainer has failed before, its
    record names that cause, which decides about the next attempt.

    A pod that has a node is recorded also if it has not started: it may be gone before anybody looks again."""
    *earlier, known = history.attempts
    run = run_of(world, known)
    message, reason = _failed_before(world, known, run) or (message, reason)
    last = usage.with_pods(known, run, True, now)
    end = last.completion_time if last.start_time else now
    ended = last.model_copy(update={**_told(world, last), "reason": reason, "message": message, "completion_time": end})
    # Pods that wait for the others of their attempt have started, but their trainer has nothing to do yet.
    ended = _judged(world, ended, earlier, _ran(known, run) and gathering.waits_until(last, run) is None)
    return replace(history, attempts=(*earlier, ended))


def _failed_before(world: World, known: Attempt, run: Run) -> End | None:
    """Return the cause for which the trainer failed before it was stopped; None if it did not, or was interrupted. The
    loss of a peer may turn out to be an interruption. Of several pods, those that have ended by now decide."""
    found = own_failure(run, said_of(world, known))
    if found is None or found[1] is FailureReason.PEER_LOST or FAILURES[found[1]].retry is Retry.INTERRUPTION:
        return None
    return found


def _updated(world: World, known: Attempt, standing: RunStanding, earlier: list[Attempt], now: datetime) -> Attempt:
    """Return the record with the pods that exist now, and with the end of the attempt if it has ended."""
    run = run_of(world, known)
    has_failed = known.reason is None and standing.standing is Standing.FAILED
    record = usage.with_pods(known, run, has_failed, now)
    if known.reason is not None:
        if not usage.is_held(known):
            return record
        # A pod that was stopped tells its last steps, and stores its last checkpoint, when it ends.
        told = record.model_copy(update=_told(world, known))
        return _judged(world, told, earlier, known.progressed is not None)
    if standing.standing not in (Standing.FAILED, Standing.SUCCEEDED):
        return record
    ended = record.model_copy(
        update={
            **_told(world, record),
            "reason": SUCCEEDED if standing.standing is Standing.SUCCEEDED else standing.failure,
            "message": standing.message if standing.standing is Standing.FAILED else None,
            "completion_time": record.completion_time if record.start_time else now,
            # A pod that its kubelet refused shows no time at which it was scheduled, so it is in no list of pods.
            "node_name": record.node_name or (run.pod.node_name if run.pod else None),
        }
    )
    return _judged(world, ended, earlier, _ran(known, run))


def _ran(known: Attempt, run: Run) -> bool:
    """Whether the trainer of an attempt has run. `known`: its record before its end."""
    return (run.pod is not None and run.pod.started is not None) or known.start_time is not None


def _judged(world: World, record: Attempt, earlier: Sequence[Attempt], ran: bool) -> Attempt:
    """Return the record of an attempt with whether it got further than those before it, if it ran.

    Its work shows that it ran also where nobody saw its pod run, or where a pod without a Job started late."""
    if not ran and record.last_step is None and record.kept_results is None:
        return record
    forgotten = world.status.counts.forgotten if world.status.counts else None
    return record.model_copy(update={"progressed": progress.got_further(record, earlier, forgotten)})


def _told(world: World, record: Attempt) -> dict[str, str | int]:
    """Return how far the attempt came, by its termination message and by what it wrote in the status."""
    run = run_of(world, record)
    progress = world.progress if world.progress.attempt == record.number else Progress()
    # Only rank 0, in the first pod, knows of the checkpoints.
    pod, first = run.pod, next((pod for pod in run.on_nodes if pod.index == 0), run.pod)
    told = first.termination if first else None
    # The pod of each node counts the results that its own ranks have stored.
    counts = [each.termination.kept_results for each in run.on_nodes if each.termination]
    kept = max(count or 0 for count in (*counts, progress.kept_results, record.kept_results))
    found: dict[str, str | int | None] = {
        "exit_code": pod.exit_code if pod else None,
        "stage": stage_of(world, record) if record.start_time else None,
        "resumed_from_step": progress.resumed_from_step,
        "last_step": (told.step if told else None) or progress.step,
        "checkpoint_step": (told.checkpoint_step if told else None) or progress.checkpoint_step,
        "kept_results": kept or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def kept(records: tuple[Attempt, ...]) -> list[Attempt] | None:
    """Return the records that the status keeps."""
    return list(records[-RECORDED:]) or None
