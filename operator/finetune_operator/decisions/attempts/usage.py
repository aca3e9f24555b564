"""For how long the pods of an attempt held their GPUs, and what that costs. Each GPU counts for itself.

Only times of the cluster count, never what a pod reports."""

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import NamedTuple

from finetune_api.status.attempts import RECORDED_PODS, Attempt, AttemptPod
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.observed.child_jobs import RESUMED, Run
from finetune_operator.observed.facts.lost import lost_at
from finetune_operator.observed.facts.pods import Pod

CENT = Decimal("0.0001")
"""Money is rounded to this."""


class Running(NamedTuple):
    """What the pods have used that still run."""

    seconds: int
    """GPU seconds."""
    cost: Decimal
    gpus: int
    """Number of the GPUs of all these pods."""
    price: Decimal
    """Of one hour of all these pods."""


def pods_of(record: Attempt, run: Run, has_failed: bool = False) -> dict[str, AttemptPod | None]:
    """Return the pods that an attempt has had, by name: as they are recorded; None for one that is new.

    `has_failed`: the attempt has failed, so a pod counts that has a node and will not start any more."""
    known: dict[str, AttemptPod | None] = {pod.name: pod for pod in record.pods or ()}
    if record.pods is None and record.start_time is not None:
        name = record.pod_name or (run.pod.name if run.pod else record.name)
        known[name] = AttemptPod(
            name=name,
            node_name=record.node_name,
            start_time=record.start_time,
            completion_time=record.completion_time,
        )
    return known | {pod.name: known.get(pod.name) for pod in run.pods if _counts(pod, has_failed)}


def with_pods(record: Attempt, run: Run, has_failed: bool, now: datetime) -> Attempt:
    """Return the record with its pods as they are now. `has_failed`: as for `pods_of`."""
    present, known = {pod.name: pod for pod in run.pods}, pods_of(record, run, has_failed)
    pods = [pod for name, old in known.items() if (pod := _recorded(old, present.get(name), run, now)) is not None]
    shown = run.pod.name if run.pod and run.nodes > 1 and record.reason is None else record.pod_name
    return _with(record, pods, known, shown if run.nodes > 1 else None) if pods else record


def priced(record: Attempt, price: str | None) -> Attempt:
    """Return the record of an attempt that began without a price, at this price."""
    if price is None or record.price_per_hour is not None:
        return record
    cost = _text(_cost(price, record.gpu_seconds)) if record.gpu_seconds else None
    return record.model_copy(update={"price_per_hour": price, "cost": cost})


def closed(record: Attempt, now: datetime) -> Attempt:
    """Return the record of an attempt of a job that ends now: nobody will look at its pods again."""
    if not is_held(record):
        return record
    run = Run(record.name, created=now)
    known = pods_of(record, run)
    pods = [_recorded(old, None, run, now) for old in known.values()]
    return _with(record, [pod for pod in pods if pod is not None], known, record.pod_name)


def _with(
    record: Attempt, pods: list[AttemptPod], known: dict[str, AttemptPod | None], shown: str | None = None
) -> Attempt:
    """Return the record with these pods. `known`: the same pods as they were. `shown`: name of the pod that the record
    names first; by default the last one."""
    ended = [pod for pod in pods if pod.completion_time and not _was_closed(known[pod.name])]
    seconds = (record.gpu_seconds or 0) + (record.gpus or 1) * sum(_seconds(pod) for pod in ended)
    last = next((pod for pod in pods if pod.name == shown), pods[-1])
    start = record.start_time or min(pod.start_time for pod in pods)
    ends = [pod.completion_time for pod in pods if pod.completion_time]
    return record.model_copy(
        update={
            "start_time": start,
            "completion_time": max(start, *ends) if len(ends) == len(pods) else None,
            "pod_name": last.name,
            "node_name": last.node_name,
            "pods": pods[-RECORDED_PODS:] if len(pods) > 1 else None,
            "gpu_seconds": seconds if ended else record.gpu_seconds,
            "cost": _text(_cost(record.price_per_hour, seconds)) if record.price_per_hour and ended else record.cost,
        }
    )


def is_held(record: Attempt) -> bool:
    """Whether a pod of the attempt still holds its GPU, as far as it is recorded."""
    return record.start_time is not None and record.completion_time is None


def totals(before: FineTuneJobStatus, attempts: Iterable[Attempt]) -> tuple[int | None, str | None]:
    """Return the GPU seconds and the cost of all attempts: the written totals, and what is new in the records.

    Records of old attempts are no longer in the status, but the totals contain them."""
    written = {attempt.number: attempt for attempt in before.attempts or []}
    seconds, cost = before.gpu_seconds, _money(before.cost)
    for attempt in attempts:
        old = written.get(attempt.number)
        if attempt.gpu_seconds is not None:
            seconds = (seconds or 0) + attempt.gpu_seconds - ((old.gpu_seconds if old else None) or 0)
        if (spent := _money(attempt.cost)) is not None:
            cost = (cost or Decimal(0)) + spent - (_money(old.cost if old else None) or Decimal(0))
    return seconds, None if cost is None else _text(cost)


def running(attempts: Iterable[tuple[Attempt, Run]], now: datetime) -> Running:
    """Return what pods that have not ended have used until now."""
    seconds, cost, gpus, price = 0, Decimal(0), 0, Decimal(0)
    for attempt, run in attempts:
        for pod in run.pods:
            if pod.held_since is not None and not has_ended(pod, now):
                held = attempt.gpus or 1
                spent = held * max(0, int((now - pod.held_since).total_seconds()))
                hourly = _money(attempt.price_per_hour) or Decimal(0)
                seconds, cost = seconds + spent, cost + hourly * spent / 3600
                gpus, price = gpus + held, price + held * hourly
    return Running(seconds, cost, gpus, price)


def _counts(pod: Pod, has_failed: bool = False) -> bool:
    """Whether the pod is recorded: it has a node, and has started or will not start any more.

    A pod that only starts is not, because the status would be written once more in each life."""
    is_settled = pod.started is not None or pod.trainer_ended or pod.is_leaving or has_failed
    return pod.held_since is not None and is_settled


def _recorded(old: AttemptPod | None, pod: Pod | None, run: Run, now: datetime) -> AttemptPod | None:
    """Return the record of one pod. The end of a pod that is lost is the time at which this is noticed. `pod`: None if
    it does not exist any more."""
    if old is not None and old.completion_time is not None:
        return old
    if pod is None:
        return old.model_copy(update={"completion_time": _gone_by(old, run, now)}) if old else None
    # A kubelet that refuses a pod after its node was restarted deletes all conditions and states of containers.
    start = old.start_time if old else pod.held_since
    if start is None:
        return None
    finished = pod.finished if pod.trainer_ended and pod.finished else now
    end = min(finished, now) if has_ended(pod, now) else None  # the clock of the API server may be ahead
    return AttemptPod(
        name=pod.name, node_name=pod.node_name, start_time=start, completion_time=max(start, end) if end else None
    )


def _gone_by(old: AttemptPod, run: Run, now: datetime) -> datetime:
    """Return the time by which a pod that does not exist any more had ended. The operator may have been away for hours,
    and the queue may have stopped the Job and started it again."""
    is_of_earlier_life = run.begun is not None and old.start_time < run.begun - RESUMED
    end = run.begun if is_of_earlier_life else run.pods_end_by
    # The clock of another node, on which the operator was started again, may be behind.
    return max(old.start_time, min(now, end or now))


def has_ended(pod: Pod, now: datetime) -> bool:
    """Whether the trainer has ended, or the pod is lost: it should have been gone for a while."""
    at = lost_at(pod)
    return pod.trainer_ended or (at is not None and now >= at)


def _was_closed(pod: AttemptPod | None) -> bool:
    return pod is not None and pod.completion_time is not None


def _seconds(pod: AttemptPod) -> int:
    return int((pod.completion_time - pod.start_time).total_seconds()) if pod.completion_time else 0


def _cost(price: str | None, seconds: int) -> Decimal:
    return (_money(price) or Decimal(0)) * seconds / 3600


def _money(text: str | None) -> Decimal | None:
    """Return the amount; None for none, and for what is no amount: a person may have edited the status."""
    try:
        amount = Decimal(text or "NaN")
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None


def _text(amount: Decimal) -> str:
    return str(amount.quantize(CENT, ROUND_HALF_UP))
