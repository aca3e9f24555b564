"""How a run on several nodes ended: when all its pods have ended, and which end is the cause.

The launchers of the pods end within seconds of each other. A node that was lost never reports the end of its pod."""

from datetime import datetime, timedelta

from finetune_api.reasons import FailureReason
from finetune_operator.observed import gangs
from finetune_operator.observed.causes import endings
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.standing import End

OTHERS_LIMIT = timedelta(seconds=60)
"""How long the other pods may take to end after the first one. The launchers give their ranks 25 to 40 seconds."""
LOSS_LIMIT = timedelta(seconds=150)
"""How long the cause is waited for where the pods that have ended have only lost another one. Kubernetes needs about 90
seconds to see that a node does not answer. The pods that have ended hold no GPUs meanwhile."""
NOW = timedelta(0)


def until_others_end(run: Run, pod: Pod, now: datetime) -> timedelta:
    """Return how long to wait for the ends of the other pods, after that of `pod`, which decides. Not positive: no
    longer."""
    others = _still_running(run)
    if not others or pod.finished is None or (run.suspended and pod.is_leaving):
        return NOW
    if pod.trainer_succeeded or not gangs.is_consequence(pod):
        return pod.finished + OTHERS_LIMIT - now
    return NOW if any(map(_is_disrupted, others)) else pod.finished + LOSS_LIMIT - now


def why_failed(run: Run, pod: Pod, said: End | None) -> End:
    """Return why the run failed. `pod`: the one that decides. `said`: the failure that rank 0 wrote in the status."""
    if run.nodes == 1:
        return endings.why_failed(pod, said)
    message, reason = endings.why_failed(pod, said if pod.index == 0 else None)
    if reason is FailureReason.PEER_LOST:
        return _why_lost(run) or (message, reason)
    # A message of the trainer names the rank and the node, unless all ranks have found the same.
    return (message if pod.termination else f"Pod {pod.name} on node {pod.node_name}: {message}"), reason


def _why_lost(run: Run) -> End | None:
    """Return why the peer of the other pods is gone, as the cluster shows it; None if it does not."""
    for other in filter(_is_disrupted, _still_running(run)):
        message, reason = endings.lost(other)
        return f"Pod {other.name} on node {other.node_name} was lost. {message}", reason
    present = {pod.index for pod in run.on_nodes}
    for index in set(range(run.nodes)) - present:
        message = f"The pod with index {index} of Job {run.name} was deleted before its work was done."
        return message, FailureReason.EVICTED
    return None


def _still_running(run: Run) -> list[Pod]:
    return [pod for pod in run.on_nodes if not pod.trainer_ended]


def _is_disrupted(pod: Pod) -> bool:
    """Whether the cluster ends the pod."""
    return pod.is_leaving and "DisruptionTarget" in pod.conditions
