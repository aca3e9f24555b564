"""Reads the nodes of pods that are being deleted, because a node that is gone never reports the end of its pods."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed.facts.pods import NodeState, Object, Pod

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Taint with which an administrator says that a node is off: https://kep.k8s.io/2268"""

logger = logging.getLogger(__name__)


class Nodes:
    """The nodes, each read once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, NodeState] = {}

    def of(self, pods: Iterable[Pod]) -> list[Pod]:
        """Return the pods, those that are being deleted with the state of their node."""
        return [replace(pod, node_state=self._state(pod.node_name)) if _is_asked_for(pod) else pod for pod in pods]

    def _state(self, name: str | None) -> NodeState:
        if name is None:
            return NodeState.ANSWERS
        if name not in self._known:
            self._known[name] = present_state(self._api, name)
        return self._known[name]


def present_state(api: Api, name: str) -> NodeState:
    """Return whether the node answers now. One that must not be read counts as one that answers."""
    try:
        return state_of(api.get("Node", name))
    except ApiError as error:
        if error.status != 403:
            raise
        logger.warning("Node %s cannot be read, so the loss of its pods is noticed later: %s", name, error.message)
        return NodeState.ANSWERS


def answers_since(api: Api, name: str) -> datetime | None:
    """Return when the node began to answer; None if it does not answer, or cannot be read."""
    try:
        node = api.get("Node", name)
    except ApiError as error:
        if error.status != 403:
            raise
        logger.warning("Node %s cannot be read, so its volumes are waited for longer: %s", name, error.message)
        return None
    if node is None or state_of(node) is not NodeState.ANSWERS:
        return None
    # The API does not require the time of a condition.
    return datetime.fromisoformat(_ready(node).get("lastTransitionTime") or node["metadata"]["creationTimestamp"])


def state_of(node: Object | None) -> NodeState:
    """Return whether a node answers. `node`: its JSON; None if it does not exist.

    The control plane sets the condition Ready to Unknown if the kubelet has not reported for a while."""
    if node is None:
        return NodeState.GONE
    ready = _ready(node).get("status", "Unknown")
    is_off = any(taint["key"] == OUT_OF_SERVICE for taint in node.get("spec", {}).get("taints", []))
    if is_off and ready != "True":
        return NodeState.GONE
    return NodeState.SILENT if ready == "Unknown" else NodeState.ANSWERS


def _ready(node: Object) -> Object:
    """Return the condition Ready of a node; an empty one if it has none yet."""
    return next((each for each in node.get("status", {}).get("conditions", []) if each["type"] == "Ready"), {})


def _is_asked_for(pod: Pod) -> bool:
    """Whether the end of this pod is awaited."""
    return pod.is_leaving and not pod.trainer_ended and pod.node_name is not None
