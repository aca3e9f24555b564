"""What a job that has not ended shows: state, stage and a sentence."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.reasons import AGAIN, FAILURES, FailureReason
from finetune_api.status.attempts import Attempt
from finetune_api.status.job import Stage, State
from finetune_operator.decisions.attempts.limits import Stop
from finetune_operator.decisions.status.conditions import Outlook
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.standing import RunStanding, Standing

RETRYING = "Retrying"


def validating(preflight: RunStanding) -> Outlook:
    """The preflight starts, waits or runs."""
    if preflight.standing is Standing.RUNNING:
        return Outlook(
            State.VALIDATING, "Validating", "The preflight checks the data, the model and the output.", Stage.PREFLIGHT
        )
    if preflight.standing is Standing.SUSPENDED:
        return Outlook(State.QUEUED, preflight.reason, preflight.message, Stage.PREFLIGHT)
    return Outlook(
        State.PENDING, "PreflightPending", preflight.message or "The preflight pod is starting.", Stage.PREFLIGHT
    )


def training(
    record: Attempt, attempt: RunStanding, stage: str, gpu_type: str | None = None, waits_until: datetime | None = None
) -> Outlook:
    """The attempt starts, waits or runs. `stage`: how far it has come. `gpu_type`: name of the type of its GPU.
    `waits_until`: when it gives up waiting for a node."""
    wanted = f" The job requests GPU type {gpu_type}." if gpu_type else ""
    if attempt.standing is Standing.SUSPENDED:
        return Outlook(State.QUEUED, attempt.reason, f"{attempt.message}{wanted}")
    if attempt.standing is not Standing.RUNNING:
        message = f"{attempt.message or 'The training pod is starting.'}{wanted}"
        if record.avoided_nodes:
            message += f" It does not use {', '.join(record.avoided_nodes)}, because earlier attempts failed there."
        if waits_until is not None:
            message += f" The job fails at {waits_until:%Y-%m-%d %H:%M} UTC if no other node can run the pod by then."
        return Outlook(State.QUEUED, "WaitingForGPU", message)
    messages = {
        Stage.PUBLISHING: "The weights and the report are being written to spec.output.uri.",
        Stage.EVALUATING: "The tuned model is compared with the base model on the test rows.",
        Stage.TRAINING: f"Training attempt {record.number} is running.",
    }
    return Outlook(State.RUNNING, stage, messages[Stage(stage)], Stage(stage))


def suspended(stop: Stop) -> Outlook:
    """The job must not run until somebody changes its spec."""
    return Outlook(State.SUSPENDED, stop.reason, stop.message)


def stopping(message: str) -> Outlook:
    """A pod was asked to stop, or has no Job any more, and the next step waits for its end."""
    return Outlook(State.PENDING, "Stopping", message)


def going_on(message: str | None) -> str:
    """Return the message of an attempt for a job that has not ended: nobody has to create it again."""
    before, _, after = (message or "").partition(AGAIN)
    return f"{before.rstrip()}{after}"


def retrying(last: Attempt, what: str, at: datetime, now: datetime, held: Sequence[Pod] = ()) -> Outlook:
    """The next attempt waits. `what`: "Attempt" or "Preflight".

    `held`: pods of earlier attempts that have not ended. A pause is counted from their end."""
    ended = f"{what} {last.number} ended with {last.reason}: {going_on(last.message)}".rstrip()
    following = f"{what} {last.number + 1} starts"
    when = f" at {at:%H:%M:%S} UTC" if at > now else ""
    if held:
        when = f" when pod {held[-1].name} has ended"
    change = FAILURES[FailureReason(last.reason)].change if last.reason in set(FailureReason) else ""
    return Outlook(State.PENDING, RETRYING, f"{ended} {following}{when}. {change}".rstrip())
