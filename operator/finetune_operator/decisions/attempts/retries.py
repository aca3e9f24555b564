"""Whether and when a job is tried again after an attempt or a preflight has ended. Pure, and from the records alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.reasons import FAILURES, RETRIED_PREFLIGHTS, FailureReason, Retry
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.attempts import RECORDED, Attempt, Counts
from finetune_operator.decisions.attempts.placement import avoided_after, was_without_a_node
from finetune_operator.decisions.attempts.progress import (
    is_before_first_step,
    is_in_vain,
    was_stopped,
    without_progress,
)
from finetune_operator.decisions.attempts.records import is_charged

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(minutes=10)
"""Pauses before a retry: they double from the first to the longest."""
TELLING = 3
"""Number of interruptions in a row before the first step from which on the status names a remedy."""
MOST_PREFLIGHTS = 999
"""The name of a Job with a longer number would not fit into a label."""


@dataclass(frozen=True)
class GiveUp:
    """The job fails: no further attempt is made."""

    reason: FailureReason
    finding: str
    """What was found, and what was tried. The remedy of the reason follows."""


@dataclass(frozen=True)
class Again:
    """The next attempt may start at `at`."""

    at: datetime
    avoided: list[str]
    """Nodes on which it must not run."""


def after_attempt(records: Sequence[Attempt], counts: Counts, policy: RunPolicy, now: datetime) -> GiveUp | Again:
    """Decide what follows the last attempt, which has ended without success.

    `counts`: with the end of the last attempt. One that was stopped is no failure, also if it was at a deadline."""
    last = records[-1]
    avoided = avoided_after(records)
    if last.reason is None or was_stopped(last):
        return Again(last.completion_time or now, avoided)
    reason = FailureReason(last.reason)
    if was_without_a_node(last):
        return GiveUp(reason, last.message or "")
    in_vain = (counts.in_vain or 0) if is_in_vain(last) else 0
    if spent := _spent(reason, counts.reasons, in_vain, counts, policy):
        last = last.model_copy(update={"message": _with_hint(last, records)})
        return GiveUp(reason, _told(last, counts, spent))
    return Again((last.completion_time or now) + _pause(reason, records, counts), avoided)


def after_preflight(records: Sequence[Attempt], counts: Counts, policy: RunPolicy, now: datetime) -> GiveUp | Again:
    """Decide what follows the last preflight, which has ended without a result."""
    last = records[-1]
    if last.reason not in set(FailureReason):
        return Again(last.completion_time or now, [])  # another version recorded it, and its next end will be known
    reason = FailureReason(last.reason)
    if reason not in RETRIED_PREFLIGHTS:
        return GiveUp(reason, last.message or "")
    if last.number >= MOST_PREFLIGHTS:
        return GiveUp(reason, _told(last, counts, f"there are at most {MOST_PREFLIGHTS} preflights", "Preflight"))
    in_vain = (counts.preflight_reasons or {}).get(reason, 0) if is_in_vain(last) else 0
    if spent := _spent(reason, counts.preflight_reasons, in_vain, counts, policy):
        return GiveUp(reason, _told(last, counts, spent, "Preflight"))
    return Again((last.completion_time or now) + _pause(reason, records, counts), [])


def halvings(counts: Counts) -> int:
    """Return how often the micro-batch of the next attempt is halved."""
    return (counts.reasons or {}).get(FailureReason.GPU_OUT_OF_MEMORY, 0)


def backoff(number: int) -> timedelta:
    """Return the pause before retry number `number`, counted from 1: 10 s, 20 s, 40 s, and so on to 10 min."""
    doublings = min(max(number - 1, 0), 16)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def _spent(
    reason: FailureReason, reasons: dict[str, int] | None, in_vain: int, counts: Counts, policy: RunPolicy
) -> str:
    """Return which limit is used up, as a part of a sentence; "never" if no retry helps; "" if there may be another.

    `reasons`: how often attempts alone, or preflights alone, ended for each reason. Each has its own one retry.
    `in_vain`: number of interruptions in a row without progress, if this is one; else 0."""
    retry = FAILURES[reason].retry
    if retry is Retry.NEVER:
        return "never"
    if retry is Retry.INTERRUPTION:
        if (counts.interruptions or 0) > policy.interruptions:
            return f"spec.runPolicy.maxInterruptions allows {policy.interruptions} interruptions"
        if in_vain > policy.retries:
            return f"spec.runPolicy.maxRetries allows {policy.retries} interruptions in a row without progress"
        return ""
    if retry is Retry.ONCE and (reasons or {}).get(reason, 0) > 1:
        return "one retry had not helped"
    if _charged(counts) > policy.retries:
        return f"spec.runPolicy.maxRetries allows {policy.retries} retries"
    return ""


def before_first_step(records: Sequence[Attempt]) -> str:
    """Return a finding and a remedy if several attempts in a row were interrupted before their first step; "" if
    fewer than TELLING were."""
    number = sum(is_before_first_step(record) for record in without_progress(records))
    if number < TELLING or not is_before_first_step(records[-1]):
        return ""
    least = "or more " if number >= RECORDED else ""
    return (
        f"{number} {least}attempts in a row were interrupted before their first step. Use a GPU type that is not Spot "
        "(spec.compute.gpuType), or let the model load faster (spec.modelCache of the FineTuneProfile)."
    )


def _with_hint(last: Attempt, records: Sequence[Attempt]) -> str:
    return f"{last.message or ''} {before_first_step(records)}".strip()


def _pause(reason: FailureReason, records: Sequence[Attempt], counts: Counts) -> timedelta:
    """Return the pause before the next attempt. What a retry changes can help at once; other causes need time."""
    retry = FAILURES[reason].retry
    if retry is Retry.INTERRUPTION:
        number = len(without_progress(records))
        return backoff(number) if number > 1 or reason is FailureReason.NODE_FAULT else timedelta(0)
    return backoff(_charged(counts)) if retry is Retry.BACKOFF else timedelta(0)


def _charged(counts: Counts) -> int:
    """Return how many ends count against maxRetries, of attempts and of preflights."""
    ends = (*(counts.reasons or {}).items(), *(counts.preflight_reasons or {}).items())
    return sum(number for reason, number in ends if is_charged(reason))


def _told(last: Attempt, counts: Counts, spent: str, what: str = "Attempt") -> str:
    """Return the finding of the last attempt, and what was tried before."""
    message = last.message or ""
    if spent == "never":
        return message
    if last.number == 1:
        return f"{message} It was not retried, because {spent}."
    if counts.interruptions is None:
        return f"{what} {last.number} of {last.number} failed: {message}"
    retried = f"{counts.retries or 0} retries and {counts.interruptions} interruptions"
    return f"{what} {last.number} failed, after {retried}, and {spent}: {message}"
