"""How long an attempt on several nodes waits for its last pods while the first ones hold their GPUs.

A queue such as Kueue starts all pods together. Without one, two jobs could each hold half of the nodes and wait for the
other half for ever. So the wait has a limit: the attempt then gives its GPUs back, and is tried again later."""

from datetime import datetime, timedelta

from finetune_api.status.attempts import Attempt, AttemptPod
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.child_jobs import RESUMED, Run
from finetune_operator.observed.standing import Standing

LIMIT = timedelta(minutes=10)
"""An autoscaler may need this long to add a node."""


def has_gathered(record: Attempt, run: Run) -> bool:
    """Whether the pods of all nodes have run together. One that is gone since then is not replaced: the others end.

    Only pods of the Job's present life count: a queue can stop the Job, and start it with other pods."""
    began, pods = run.begun or run.created, record.pods or ()
    if not any(_has_successor(pod, run) for pod in pods):
        began -= RESUMED
    return sum(pod.start_time >= began for pod in pods) >= run.nodes > 1


def _has_successor(pod: AttemptPod, run: Run) -> bool:
    """Whether another pod has the index of a recorded one, which is from an earlier life of the Job then: no pod is
    replaced within one."""
    return any(
        other.name != pod.name and pod.name.startswith(f"{run.name}-{other.index}-") and other.created >= pod.start_time
        for other in run.pods
    )


def waits_until(record: Attempt, run: Run) -> datetime | None:
    """Return when the attempt gives its GPUs back; None if none of its pods has a node, or if all have or had one."""
    held, placed = _holding(run), sum(pod.held_since is not None for pod in run.on_nodes)
    is_waiting = held and placed < run.nodes and not has_gathered(record, run)
    return min(held) + LIMIT if is_waiting else None


def incomplete(record: Attempt, run: Run, standing: Standing, now: datetime) -> str | None:
    """Return a finding if the attempt has waited too long for its last pods; else None."""
    end = waits_until(record, run)
    if standing is not Standing.WAITING or end is None or now < end:
        return None
    said = _said(run)
    finding = f"{_counted(run)}, and the others have had none for {LIMIT / timedelta(minutes=1):.0f} min{said[0]}"
    return f"{finding} The pods were ended, so that other jobs can use their GPUs. {said[1]}".rstrip()


def told(record: Attempt, run: Run, standing: Standing) -> str:
    """Return what to tell about an attempt that waits for its last pods, as the end of a message; "" of another one."""
    end = waits_until(record, run)
    if standing is not Standing.WAITING or end is None:
        return ""
    return f" {_counted(run)}. It gives its GPUs back at {end:%H:%M:%S} UTC if the others have none by then."


def look_again(record: Attempt, run: Run, now: datetime) -> timedelta | None:
    """Return when `incomplete` may have another answer; None if only an event can change it."""
    end = waits_until(record, run)
    return end - now if end is not None and end > now else None


def _holding(run: Run) -> list[datetime]:
    """Return since when pods hold their GPUs. One that is being removed waits for no other: it is from before a queue
    stopped the Job, or its own end decides."""
    return [pod.held_since for pod in run.on_nodes if pod.held_since is not None and not pod.is_leaving]


def _counted(run: Run) -> str:
    held = len(_holding(run))
    return f"{held} of the {run.nodes} pods of the attempt {'has' if held == 1 else 'have'} a node"


def _said(run: Run) -> tuple[str, str]:
    """Return what keeps the last pods from starting, as the end of a sentence, and what helps."""
    if run.refusal:
        return f": {run.refusal.rstrip('. ')}.", remedies.of_refusal(run.refusal)
    waiting = [pod.conditions.get("PodScheduled") for pod in run.on_nodes if pod.held_since is None]
    words = next((condition.message.rstrip(". ") for condition in waiting if condition and condition.message), "")
    return (f": {words}.", remedies.of_no_node(words)) if words else (".", "")
