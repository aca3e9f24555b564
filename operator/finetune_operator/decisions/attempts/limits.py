"""What the tenant or the job's own limits ask for: to suspend the job, or to end it at its deadline."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_operator.decisions import gpu_choice
from finetune_operator.decisions.attempts import usage
from finetune_operator.decisions.attempts.records import History, run_of
from finetune_operator.observed.world import World

LONGEST_LOOK = 7 * 24 * 3600
"""Seconds after which a budget is looked at again at the latest."""
SUSPENDED, BUDGET_EXCEEDED, COST_UNKNOWN = "Suspended", "BudgetExceeded", "CostUnknown"


@dataclass(frozen=True)
class Stop:
    """Why the job must not run. `reason` is a failure reason if the job ends, else the reason of its suspension."""

    reason: str
    message: str

    @property
    def suspends_the_job(self) -> bool:
        """Whether the job is suspended until somebody changes its spec. Else it ends, or waits for its profile."""
        return self.reason in (SUSPENDED, BUDGET_EXCEEDED)


def stop(world: World, history: History, now: datetime) -> Stop | None:
    """Return why the job must not run now; None if it may.

    What suspends a job comes before its deadline: a suspended job fails only when it is resumed. A job that waits for a
    price is not suspended, because nobody has to resume it."""
    if world.spec is None:
        return None
    if world.spec.suspend:
        until = _until(world, history)
        return Stop(SUSPENDED, f"spec.suspend is true. Set it to false to resume the job.{until}")
    return (
        _over_budget(world, history, now)
        or _after_its_deadline(world, history, now)
        or _without_a_price(world, world.spec, history)
    )


def next_look(world: World, history: History, now: datetime) -> timedelta | None:
    """Return after which time a limit will be reached; None if there is no limit."""
    times = []
    if (due := _deadline(world, history)) is not None:
        times.append(due - now)
    for limit in _budgets(world, history, now):
        if limit.rate:
            # Rounded up to whole seconds: a look just before the limit would find it not reached.
            times.append(timedelta(seconds=min(int((limit.most - limit.used) / limit.rate) + 1, LONGEST_LOOK)))
    return max(min(times), timedelta(seconds=1)) if times else None


def recorded_start(world: World, history: History) -> datetime | None:
    """Return when the first training pod was scheduled, as the records show it."""
    recorded = [attempt.start_time for attempt in history.attempts if attempt.start_time]
    return world.status.start_time or min(recorded, default=None)


def _started(world: World, history: History) -> datetime | None:
    """Return when the first training pod was scheduled, also if that is not recorded yet."""
    placed = [pod.held_since for run in world.attempts.values() for pod in run.pods if pod.held_since]
    return recorded_start(world, history) or min(placed, default=None)


def _deadline(world: World, history: History) -> datetime | None:
    seconds = world.spec.policy.active_deadline_seconds if world.spec else None
    first = _started(world, history)
    return first + timedelta(seconds=seconds) if seconds is not None and first is not None else None


def _after_its_deadline(world: World, history: History, now: datetime) -> Stop | None:
    due = _deadline(world, history)
    if world.spec is None or due is None or now < due:
        return None
    seconds = world.spec.policy.active_deadline_seconds
    return Stop(
        FailureReason.DEADLINE_EXCEEDED,
        f"The job had not ended {seconds} s after its first training pod was scheduled "
        "(spec.runPolicy.activeDeadlineSeconds).",
    )


def _without_a_price(world: World, spec: FineTuneJobSpec, history: History) -> Stop | None:
    """Return that the running attempt must stop because the job has a limit on its cost and no price is known."""
    last = history.last
    has_limit = spec.policy.budget is not None and spec.policy.budget.cost is not None
    if not has_limit or last is None or last.reason is not None or last.price_per_hour is not None:
        return None
    return Stop(COST_UNKNOWN, " ".join(gpu_choice.no_price(spec, gpu_choice.name_of(world))))


def _until(world: World, history: History) -> str:
    """Return until when a suspended job can be resumed, as the end of a message; "" if it has no deadline."""
    if (due := _deadline(world, history)) is None:
        return ""
    return (
        f" If it is resumed after {due:%Y-%m-%d %H:%M:%S} UTC, it fails at its deadline "
        "(spec.runPolicy.activeDeadlineSeconds): raise that field in the same change."
    )


def _over_budget(world: World, history: History, now: datetime) -> Stop | None:
    for limit in _budgets(world, history, now):
        if limit.used >= limit.most:
            until = _until(world, history)
            return Stop(
                BUDGET_EXCEEDED,
                f"The job has used its budget of {limit.told}. Raise this field to resume the job from its last "
                f"checkpoint.{until}",
            )
    return None


class _Limit(NamedTuple):
    """One limit of the budget."""

    used: Decimal
    most: Decimal
    rate: Decimal
    """What one second adds to `used`."""
    told: str


def _budgets(world: World, history: History, now: datetime) -> list[_Limit]:
    budget = world.spec.policy.budget if world.spec else None
    if budget is None:
        return []
    seconds, cost = usage.totals(history.before, history.attempts)
    more = usage.running([(attempt, run_of(world, attempt)) for attempt in history.attempts], now)
    found = []
    if (hours := budget.gpu_hours) is not None:
        used, most = Decimal((seconds or 0) + more.seconds), Decimal(str(hours)) * 3600
        found.append(
            _Limit(used, most, Decimal(more.gpus), f"{_plain(hours)} GPU hours (spec.runPolicy.budget.gpuHours)")
        )
    if budget.cost is not None:
        used, most = Decimal(cost or 0) + more.cost, Decimal(budget.cost)
        found.append(_Limit(used, most, more.price / 3600, f"{budget.cost} (spec.runPolicy.budget.cost)"))
    return found


def _plain(number: float) -> str:
    """Return the number with all its digits, and without an exponent."""
    return f"{Decimal(str(number)).normalize():f}"
