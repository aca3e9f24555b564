"""Several pods of one run that start, fail and stop together, one on each node.

Where one fails, the others end too. Their ends are consequences: they have lost a peer, or were asked to stop."""

from collections.abc import Iterable, Sequence

from finetune_api.reasons import FailureReason
from finetune_operator.observed.causes.endings import why_failed
from finetune_operator.observed.facts.pods import Pod


def newest(pods: Iterable[Pod]) -> Pod | None:
    """Return the newest pod that is not being deleted, else the newest of all; None if there are none."""
    return max(pods, key=lambda pod: (not pod.is_leaving, pod.created), default=None)


def of_nodes(pods: Sequence[Pod]) -> list[Pod]:
    """Return the pod that counts on each node, in the order of their index. A pod that does not exist is left out."""
    indices = sorted({pod.index for pod in pods})
    found = (newest(pod for pod in pods if pod.index == index) for index in indices)
    return [pod for pod in found if pod is not None]


def deciding(pods: Sequence[Pod]) -> Pod | None:
    """Return the pod that decides the state of the run: that of index 0 if it has succeeded, else the cause of a
    failure, else the one that is farthest from running. None if there are no pods."""
    on_nodes = of_nodes(pods)
    if not on_nodes:
        return None
    if on_nodes[0].index == 0 and on_nodes[0].trainer_ended and on_nodes[0].trainer_succeeded:
        return on_nodes[0]
    failed = [pod for pod in on_nodes if pod.trainer_ended and not pod.trainer_succeeded]
    return min(failed, key=_rank_of_cause) if failed else min(on_nodes, key=_closeness)


def is_consequence(pod: Pod) -> bool:
    """Whether the pod, which has failed, says only that it has lost another one."""
    return why_failed(pod)[1] is FailureReason.PEER_LOST


def _rank_of_cause(pod: Pod) -> tuple[int, float, int]:
    """Return how likely it is that another end is the cause of this one; then the time and the index decide."""
    reason = why_failed(pod)[1]
    was_asked = pod.termination is not None and pod.termination.reason is FailureReason.PREEMPTED is reason
    likely = 2 if reason is FailureReason.PEER_LOST else int(was_asked)
    return likely, (pod.finished or pod.created).timestamp(), pod.index


def _closeness(pod: Pod) -> tuple[bool, bool, bool, int]:
    """Return how close the pod, which has not failed, is to running."""
    return not pod.is_leaving, pod.started is not None, pod.placed is not None, pod.index
