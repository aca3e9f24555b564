"""The watch of pods may be later than that of Jobs: the pods of a Job that has failed are then read live.

Otherwise a failure would be taken for a deleted pod, which is an interruption."""

from typing import Any, cast

import pytest

from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.observe import observe
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from finetune_operator.store.store import JOB, POD, RUN, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import SPEC

ENDED = objects.pod(version=9, phase="Failed")
FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
OVERDUE = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "M."}]}
RECORD = {"number": 1, "name": "tickets-j-a1"}
VALIDATED = {
    "conditions": [{**objects.validated()["conditions"][0], "reason": "R", "lastTransitionTime": objects.CREATED}]
}


class Live:
    """An API server with some pods. Counts what it is asked."""

    def __init__(self, *pods: Object) -> None:
        self.pods = list(pods)
        self.asked: list[tuple[str, str]] = []

    def listed(self, path: str, labels: str) -> list[Object]:
        self.asked.append((path, labels))
        return self.pods


def seen(api: Live, run: Object, *pods: Object, **status: Any) -> World:
    job = objects.job(status=status)
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    store = Store(lambda key: None)
    for kind, shown in ((JOB, job), (RUN, run), *((POD, pod) for pod in pods)):
        store.put(kind, shown)
    found = observe(cast(Api, api), store, Accounts(cast(Api, api)), ("team", "tickets"))
    assert found is not None
    return found


@pytest.mark.parametrize("shown", [[], [objects.pod()]], ids=["never shown", "shown as running"])
def test_the_pod_of_a_failed_job_is_read_live(shown: list[Object]) -> None:
    api = Live(ENDED)

    world = seen(api, objects.run() | {"status": FAILED}, *shown, attempts=[RECORD])

    assert api.asked == [("/api/v1/namespaces/team/pods", "batch.kubernetes.io/controller-uid=r")]
    assert [pod.phase for pod in world.attempts[1].pods] == ["Failed"]


def test_a_pod_that_was_deleted_stays_gone() -> None:
    assert seen(Live(), objects.run() | {"status": FAILED}).attempts[1].pods == ()


@pytest.mark.parametrize(
    ("run", "pods", "status"),
    [
        (objects.run(), [objects.pod()], {}),
        (objects.run() | {"status": FAILED}, [ENDED], {}),
        (objects.run() | {"status": FAILED}, [], {"attempts": [{**RECORD, "reason": "Evicted"}]}),
        (objects.run() | {"status": OVERDUE}, [], {}),
        (objects.run(step="preflight") | {"status": FAILED}, [], VALIDATED),
    ],
    ids=["running", "ended", "on record", "with a reason of its own", "validated"],
)
def test_no_pod_is_read_where_nothing_is_missing(run: Object, pods: list[Object], status: Any) -> None:
    api = Live()

    seen(api, run, *pods, **status)

    assert api.asked == []
