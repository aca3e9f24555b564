"""The node of a pod is read while the pod is being deleted, and costs no request otherwise."""

from datetime import timedelta
from typing import Any, cast

import pytest

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.nodes import OUT_OF_SERVICE, Nodes, answers_since, state_of
from finetune_operator.observed.facts.pods import NodeState, Object
from tests.unit.finetune_operator.worlds import NOW, pod

LEAVING = pod(due=NOW + timedelta(seconds=120))


def node(ready: str | None, *taints: str) -> Object:
    conditions = [{"type": "DiskPressure", "status": "Unknown"}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": ready})
    return {"spec": {"taints": [{"key": key} for key in taints]}, "status": {"conditions": conditions}}


STATES = [
    (node("True"), NodeState.ANSWERS),
    (node("False"), NodeState.ANSWERS),
    (node("Unknown"), NodeState.SILENT),
    (node("Unknown", "node.kubernetes.io/unreachable"), NodeState.SILENT),
    (node("Unknown", OUT_OF_SERVICE), NodeState.GONE),
    (node("False", "a", OUT_OF_SERVICE), NodeState.GONE),
    (node("True", OUT_OF_SERVICE), NodeState.ANSWERS),
    (node(None), NodeState.SILENT),
    (None, NodeState.GONE),
]


class Live:
    """An API server with one node, or with none."""

    def __init__(self, found: Object | None = None, error: ApiError | None = None) -> None:
        self.found, self.error, self.asked = found, error, list[str]()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self.asked.append(f"{kind} {name}")
        if self.error:
            raise self.error
        return self.found


def nodes(live: Live) -> Nodes:
    return Nodes(cast(Api, live))


@pytest.mark.parametrize(("raw", "state"), STATES)
def test_the_state_of_a_node(raw: Object | None, state: NodeState) -> None:
    assert state_of(raw) is state
    assert nodes(Live(raw)).of([LEAVING])[0].node_state is state


@pytest.mark.parametrize(
    "fields",
    [{}, {"due": NOW, "phase": "Failed"}, {"due": NOW, "exit_code": 33}, {"due": NOW, "node_name": None}],
    ids=["running", "ended", "its trainer has ended", "without a node"],
)
def test_the_node_of_another_pod_is_not_read(fields: dict[str, Any]) -> None:
    live, other = Live(), pod(**fields)

    assert nodes(live).of([other]) == [other]
    assert live.asked == []


def test_each_node_is_read_once() -> None:
    live = Live(node("Unknown"))

    nodes(live).of([LEAVING, LEAVING])

    assert live.asked == ["Node n1"]


def test_an_operator_that_may_not_read_nodes_waits_as_for_a_node_that_answers() -> None:
    refused = Live(error=ApiError(403, "no"))

    assert nodes(refused).of([LEAVING])[0].node_state is NodeState.ANSWERS
    with pytest.raises(ApiError):
        nodes(Live(error=ApiError(500, "no"))).of([LEAVING])


@pytest.mark.parametrize("given", [{}, {"lastTransitionTime": None}])
def test_a_node_whose_condition_has_no_time_answers_since_it_exists(given: dict[str, Any]) -> None:
    ready = {"type": "Ready", "status": "True", **given}
    raw = {"metadata": {"creationTimestamp": f"{NOW:%Y-%m-%dT%H:%M:%SZ}"}, "status": {"conditions": [ready]}}

    assert answers_since(cast(Api, Live(raw)), "n1") == NOW
