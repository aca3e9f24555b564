"""A pod that is being deleted counts as lost at a time that depends on its node."""

from datetime import timedelta

import pytest

from finetune_api.reasons import FailureReason
from finetune_operator.observed.facts.lost import LOOK_AGAIN, LOST_GRACE, lost_at, next_look
from finetune_operator.observed.facts.pods import NodeState, Pod
from finetune_operator.observed.runs import assess
from finetune_operator.observed.standing import Standing
from tests.unit.finetune_operator.worlds import NOW, attempt, pod

GRACE = timedelta(seconds=120)
SECOND = timedelta(seconds=1)
AFTER = {
    NodeState.ANSWERS: GRACE + LOST_GRACE,
    NodeState.SILENT: LOST_GRACE,
    NodeState.GONE: timedelta(0),
}


def leaving(state: NodeState) -> Pod:
    """A pod whose deletion was requested NOW."""
    return pod(due=NOW + GRACE, grace=GRACE, node_state=state)


@pytest.mark.parametrize(("state", "after"), AFTER.items())
def test_a_pod_is_lost_after_a_time_that_depends_on_its_node(state: NodeState, after: timedelta) -> None:
    run = attempt(leaving(state))

    assert lost_at(leaving(state)) == NOW + after
    assert assess(run, NOW + after - SECOND).standing is Standing.RUNNING
    end = assess(run, NOW + after)
    assert (end.standing, end.failure) == (Standing.FAILED, FailureReason.NODE_LOST)


def test_the_message_says_what_became_of_the_node() -> None:
    silent, gone = (assess(attempt(leaving(state)), NOW + 2 * GRACE) for state in (NodeState.SILENT, NodeState.GONE))

    assert silent.message == "Node n1 stopped responding while it ran the pod."
    assert gone.message == "Node n1, which ran the pod, was deleted or is out of service."


def test_a_pod_that_is_not_being_deleted_is_never_lost() -> None:
    assert (lost_at(pod()), next_look(pod(), NOW)) == (None, None)


def test_a_pod_that_is_being_deleted_is_looked_at_again_soon_because_no_watch_shows_its_node() -> None:
    answers = leaving(NodeState.ANSWERS)

    assert next_look(answers, NOW) == LOOK_AGAIN
    assert next_look(answers, NOW + GRACE + LOST_GRACE - SECOND) == SECOND


def test_the_grace_period_is_read_from_the_pod() -> None:
    raw = {
        "metadata": {
            "name": "p",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "deletionTimestamp": "2026-01-02T03:06:05Z",
            "deletionGracePeriodSeconds": 120,
        }
    }

    assert Pod.parse(raw).grace == GRACE
    del raw["metadata"]["deletionGracePeriodSeconds"]
    assert Pod.parse(raw).grace == timedelta(0)
