"""Finds what a suspended Job waits for, from the Workload in which Kueue keeps its place in the queue."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator.observed.causes.remedies import REQUEST_LESS
from finetune_operator.observed.facts.pods import Object

LOOK_AGAIN, LOOK_AGAIN_AT_LAST = timedelta(seconds=5), timedelta(minutes=5)
"""First and last interval of looks at a Workload. The operator does not watch Workloads: see docs/scale.md."""
_NO_WORKLOAD = (
    "Kueue has made no Workload for the Job yet. If this lasts, check that Kueue runs, and that the label "
    "kueue.x-k8s.io/priority-class, if the FineTuneJob has it, names one of `kubectl get workloadpriorityclasses`."
)
_NO_QUEUE = (
    "Create the queue in this namespace, or use one of `kubectl get localqueues`: for training in the label "
    "kueue.x-k8s.io/queue-name of a new FineTuneJob, for the preflight in spec.pods.preflight.queueName of the "
    "FineTuneProfile. If the queue is listed there, ask the platform team to activate it."
)
_MISMATCH = "namespace doesn't match ClusterQueue selector"
_OTHER_NAMESPACE = (
    "Ask the platform team to admit this namespace to the ClusterQueue, or use another queue of "
    "`kubectl get localqueues` in a new job."
)
_TOO_MUCH, _LATER = "> maximum capacity", "insufficient unused quota"
_NEVER_ENOUGH = f"Waiting does not help: ask the platform team for more quota, or {REQUEST_LESS}."
_DEACTIVATED = "The workload is deactivated"
"""How Kueue's message about a deactivated Workload begins. A cause can follow: ` due to ...`."""
_LONGEST_WORD = 1000
"""Largest number of characters shown of a message of Kueue."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why Kueue holds a Job back. `reason` is that of the condition Ready, `message` is a sentence."""

    reason: str
    message: str


NORMAL_HOLDS = {"WaitingForQuota", "WaitingForAdmissionCheck", "Admitted"}
"""Reasons that every job in a queue can pass through without anybody who acts."""
UNKNOWN = Hold("Suspended", "")
"""For a Workload that cannot be read: the Job itself says only that it is suspended."""


def next_look(since: datetime, now: datetime) -> timedelta:
    """Return when to read the Workload again of a Job that is suspended since `since`.

    The interval is as long as the Job has waited, because a thousand jobs can wait in a queue for days."""
    return min(max(now - since, LOOK_AGAIN), LOOK_AGAIN_AT_LAST)


def hold_of(workload: Object | None, queue: str) -> Hold:
    """Return what the Workload's Job waits for. `workload` is JSON of any version of Kueue's API since v1beta1.

    None if the Job has no Workload. Kueue makes one for each Job at once, and says nothing about a Job if it cannot."""
    if workload is None:
        return Hold("WaitingForQuota", f"Waiting for quota in queue {queue}: {_NO_WORKLOAD}")
    status = workload.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    if workload.get("spec", {}).get("active") is False:
        return Hold("Deactivated", _deactivated(workload["metadata"]["name"], conditions.get("Evicted", {})))
    if _holds(conditions, "Finished"):
        return Hold("NotStarted", _finished(workload["metadata"]["name"], conditions["Finished"]))
    if _holds(conditions, "Evicted"):
        return Hold("WaitingForQuota", _again(queue, conditions))
    if _holds(conditions, "Admitted"):
        return Hold("Admitted", f"Queue {queue} has admitted the Job. Kueue starts it in a moment.")
    if _holds(conditions, "QuotaReserved"):
        return Hold("WaitingForAdmissionCheck", _checks(queue, status.get("admissionChecks", [])))
    return Hold("WaitingForQuota", _quota(queue, conditions))


def _quota(queue: str, conditions: dict[str, Object]) -> str:
    reserved = conditions.get("QuotaReserved", {})
    said = f": {_shown(reserved)}" if reserved.get("message") else "."
    message = f"Waiting for quota in queue {queue}{said}"
    if _MISMATCH in said:
        return f"{message} {_OTHER_NAMESPACE}"
    if reserved.get("reason") == "Inadmissible":
        message += f" {_NO_QUEUE}"
    never = _TOO_MUCH in said and _LATER not in said  # Kueue tells the reason of each flavor
    return f"{message} {_NEVER_ENOUGH}" if never else message


def _finished(name: str, finished: Object) -> str:
    """Return why Kueue takes a Job for finished that is suspended: it could not start it."""
    return (
        f"Kueue could not start the Job and does not try again, with reason {finished.get('reason', '')}: "
        f"{_shown(finished)} Correct that cause, then delete Workload {name}."
    )


def _again(queue: str, conditions: dict[str, Object]) -> str:
    """Return what a Job waits for that Kueue has stopped. While its pods end, Kueue leaves it the quota and calls it
    admitted. When Kueue reserves quota again, the condition Evicted becomes False."""
    reserved, evicted = conditions.get("QuotaReserved", {}), conditions["Evicted"]
    why = f"with reason {evicted.get('reason', '')}: {_shown(evicted)}"
    if _holds(conditions, "QuotaReserved"):
        return f"Kueue stopped the Job, {why} The Job waits for quota in queue {queue} again when its pods have ended."
    message = _quota(queue, conditions)
    if evicted.get("message") != reserved.get("message"):
        message += f" Kueue stopped the Job before, {why}"
    return message


def _checks(queue: str, checks: list[Object]) -> str:
    """Return which admission checks have not passed. Kueue runs them after it has reserved the quota."""
    open_checks = [check for check in checks if check.get("state") != "Ready"]
    names = ", ".join(check["name"] for check in open_checks) or "of the ClusterQueue"
    said = " ".join(_shown(check) for check in open_checks if check.get("message"))
    return f"Queue {queue} has reserved the quota. Waiting for admission check {names}{f': {said}' if said else '.'}"


def _deactivated(name: str, evicted: Object) -> str:
    """`evicted`: the condition. It can be that of an earlier end, for another reason."""
    is_its_end = evicted.get("status") == "True" and evicted.get("reason", "").startswith("Deactivated")
    said = str(evicted.get("message", "")) if is_its_end else ""
    if said and not said.startswith(_DEACTIVATED):
        said = f": {said}"
    why = _shown({"message": said.removeprefix(_DEACTIVATED)})
    return f"Workload {name} is deactivated{why} Set spec.active of the Workload to true to continue."


def _holds(conditions: dict[str, Object], type: str) -> bool:
    return bool(conditions.get(type, {}).get("status") == "True")


def _shown(condition: Object) -> str:
    """Return the condition's message, shortened, as the end of a sentence."""
    said = str(condition.get("message", ""))
    shown = said if len(said) <= _LONGEST_WORD else f"{said[:_LONGEST_WORD]}..."
    return f"{shown.rstrip('. ')}."
